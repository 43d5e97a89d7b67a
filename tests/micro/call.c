/* Calls functions on operands, from stdin to stdout: see qemu.rs. An operand ends where a page does that cannot be
 * read, so that a load or store beyond it ends the program. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { IN, OUT, WITHIN, NUMBER, MOST = 5, GUARD = 64 };

static void check(int is_right, const char *what)
{
    if (!is_right) {
        fprintf(stderr, "%s\n", what);
        exit(1);
    }
}

static uint64_t word(void)
{
    uint64_t value;
    check(fread(&value, sizeof value, 1, stdin) == 1, "a word is missing");
    return value;
}

static size_t page, length[MOST + 1];
static unsigned char *base[MOST + 1];

/* So many bytes of stdin, in pages of their own with a guard before; operand 5 is the code. */
static unsigned char *read_bytes(int operand, size_t bytes)
{
    size_t whole = (bytes + GUARD + page - 1) / page * page;
    unsigned char *at = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(at != MAP_FAILED && mprotect(at + whole, page, PROT_NONE) == 0, "no memory");
    base[operand] = at;
    length[operand] = whole + page;
    memset(at, 0xa5, whole);
    /* Code begins where a page does. */
    unsigned char *start = operand == MOST ? at : at + whole - bytes;
    check(fread(start, 1, bytes, stdin) == bytes, "bytes are missing");
    return start;
}

int main(void)
{
    page = (size_t)sysconf(_SC_PAGESIZE);
    for (uint64_t cases = word(); cases > 0; cases--) {
        uint64_t arguments[MOST] = {0}, count, written = MOST, bytes = 0;
        unsigned char *code = read_bytes(MOST, word());
        check(mprotect(code, length[MOST] - page, PROT_READ | PROT_EXEC) == 0, "no code");
        count = word();
        for (uint64_t i = 0; i < count; i++) {
            uint64_t kind = word(), first = word(), second = word();
            if (kind == IN || kind == OUT) {
                arguments[i] = (uint64_t)read_bytes((int)i, first);
                if (kind == OUT)
                    written = i, bytes = first;
            } else {
                arguments[i] = kind == WITHIN ? arguments[first] + second : first;
            }
        }
        check(written < MOST, "no results");
        __builtin___clear_cache((char *)code, (char *)code + length[MOST] - page);
        ((void (*)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t))code)(arguments[0], arguments[1], arguments[2],
                                                                          arguments[3], arguments[4]);
        unsigned char *results = (unsigned char *)arguments[written];
        for (int i = 1; i <= GUARD; i++)
            check(results[-i] == 0xa5, "written before the results");
        check(fwrite(results, 1, bytes, stdout) == bytes && fflush(stdout) == 0, "no output");
        for (int i = 0; i <= MOST; i++) {
            if (base[i])
                munmap(base[i], length[i]);
            base[i] = NULL;
        }
    }
    return 0;
}
