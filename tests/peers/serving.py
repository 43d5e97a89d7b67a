#!/usr/bin/env python3
"""Times servers of OpenAI's API that run already, in turns: `serving.py NAME=URL [NAME=URL ...]`.

Each of so many clients asks for a completion of its own prompt, streamed, all at once; what is printed of each server
and number of clients is the median over the repeats: tokens a second of all clients together, seconds to the first
token and between tokens (median and 99th percentile over all clients). With `--shared N` the prompts begin with the
same N words. With `--chat N` one client holds a conversation of N turns after a system prompt of `--system-words`; what
is printed is the seconds to the first token of each turn, beside those of a prompt of the turn's new words alone. With
`--beside-prompt N` each number of clients streams answers before and while a prompt of N words is prefilled; what is
printed is the median and 99th percentile of the seconds between tokens, without it and with it, and their ratios to the
median without. Servers need `ignore_eos` (llama.cpp's and Lapidary's have it); standard library alone.
"""
import argparse, http.client, json, random, statistics, threading, time, urllib.parse

WORDS = ("the and of to a in that was his he it with is for as had you not be her on at by which have or from this him "
         "but all she they were").split()


def text(words, seed):
    """So many common words, a token each in most vocabularies."""
    dice = random.Random(seed)
    return " ".join(dice.choice(WORDS) for _ in range(words))


class Server:
    def __init__(self, spec):
        self.name, _, url = spec.partition("=")
        parts = urllib.parse.urlsplit(url)
        self.host, self.port = parts.hostname, parts.port

    def word(self):
        """The token of a word."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=600)
        connection.request("POST", "/tokenize", json.dumps({"content": " and"}), {"Content-Type": "application/json"})
        return json.load(connection.getresponse())["tokens"][-1]

    def stream(self, path, body, seen=None):
        """(seconds to the first text, seconds between texts after it, tokens of the answer, its text); `seen` says at
        each whether to go on."""
        body = dict(body, stream=True, stream_options={"include_usage": True})
        start = time.perf_counter()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=600)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"{self.name}: status {response.status}: {response.read()[:300]!r}")
        times, tokens, said = [], 0, []
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            choice = (event.get("choices") or [{}])[0]
            piece = choice.get("text") or (choice.get("delta") or {}).get("content")
            if piece:
                times.append(time.perf_counter())
                said.append(piece)
                if seen and not seen(times[-1]):
                    break
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        connection.close()
        if not times:
            raise SystemExit(f"{self.name}: an answer without text")
        return times[0] - start, [b - a for a, b in zip(times, times[1:])], tokens, "".join(said)


def crowd(server, clients, args, turn):
    """(tokens a second, seconds to the first tokens, seconds between tokens) of so many clients at once."""
    shared = text(args.shared, 0) + " " if args.shared else ""
    results = [None] * clients

    def client(index):
        prompt = shared + text(args.prompt_words, hash((turn, index)))
        body = {"prompt": prompt, "max_tokens": args.tokens, "temperature": 0, "ignore_eos": True, "seed": 1}
        results[index] = server.stream("/v1/completions", body)

    threads = [threading.Thread(target=client, args=(index,)) for index in range(clients)]
    start = time.perf_counter()
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    seconds = time.perf_counter() - start
    if None in results:
        raise SystemExit(f"{server.name}: a client got no answer")
    return sum(r[2] for r in results) / seconds, [r[0] for r in results], [gap for r in results for gap in r[1]]


def crowds(servers, args):
    print(f"{'server':12} {'clients':>7} {'tok/s':>8} {'x one':>6} {'TTFT p50':>9} {'p99':>8} {'ITL p50':>9} "
          f"{'p99':>8}")
    one = {}
    for clients in args.clients:
        found = {server.name: [] for server in servers}
        for repeat in range(args.repeat):
            for server in servers:
                found[server.name].append(crowd(server, clients, args, repeat * 1000 + clients))
        for server in servers:
            runs = found[server.name]
            rate = statistics.median(r[0] for r in runs)
            first, between = (sorted(x for r in runs for x in r[part]) for part in (1, 2))
            place = lambda values, share: min(len(values) - 1, int(share * len(values)))
            at = lambda values, share: values[place(values, share)] if values else float("nan")
            one.setdefault(server.name, rate)
            print(f"{server.name:12} {clients:7} {rate:8.1f} {rate / one[server.name]:6.2f} "
                  f"{at(first, .5):9.3f} {at(first, .99):8.3f} "
                  f"{at(between, .5):9.4f} {at(between, .99):8.4f}", flush=True)


def beside(servers, args):
    """Seconds between tokens of so many clients, without and with a prompt that is prefilled beside them."""
    print(f"{'server':12} {'clients':>7} {'without':>9} {'p99':>9} {'with':>9} {'p99':>9} {'max':>9} "
          f"{'p99 / median':>13} {'prompt s':>9}")
    for clients, server in ((clients, server) for clients in args.clients for server in servers):
        apart, among, prefilling = [], [], []
        # Each token has a text, so that each is an event.
        same = {str(server.word()): 100}
        for repeat in range(args.repeat):
            times, stop = [[] for _ in range(clients)], threading.Event()

            def client(index):
                body = {"prompt": text(args.prompt_words, hash((repeat, index))), "max_tokens": args.most_tokens}
                seen = lambda at: times[index].append(at) or not stop.is_set()
                body = dict(body, temperature=0, ignore_eos=True, seed=1, logit_bias=same)
                server.stream("/v1/completions", body, seen)

            threads = [threading.Thread(target=client, args=(index,)) for index in range(clients)]
            [thread.start() for thread in threads]
            while any(len(own) < 3 for own in times):
                time.sleep(0.01)
            start = time.perf_counter()
            while any(sum(at > start for at in own) < args.tokens for own in times):
                time.sleep(0.01)
            begin = time.perf_counter()
            long = text(args.beside_prompt, hash((repeat, "long")))
            body = {"prompt": long, "max_tokens": 1, "temperature": 0, "ignore_eos": True}
            first = server.stream("/v1/completions", body)[0]
            end = begin + first
            stop.set()
            [thread.join() for thread in threads]
            prefilling.append(first)
            for own in times:
                gaps = list(zip(own, own[1:]))
                apart += [b - a for a, b in gaps if a >= start and b <= begin]
                among += [b - a for a, b in gaps if b > begin and a < end]
        at = lambda values, share: sorted(values)[min(len(values) - 1, int(share * len(values)))]
        plain = statistics.median(apart)
        print(f"{server.name:12} {clients:7} {plain:9.4f} {at(apart, .99):9.4f} "
              f"{statistics.median(among):9.4f} {at(among, .99):9.4f} "
              f"{max(among):9.4f} {at(among, .99) / plain:13.2f} {statistics.median(prefilling):9.2f}", flush=True)


def conversation(servers, args):
    """The seconds to the first token of each turn, and of its new words alone."""
    for server in servers:
        messages = [{"role": "system", "content": text(args.system_words, 1)}]
        print(f"{server.name}: turn, seconds to the first token, of the turn's new words alone, ratio")
        for turn in range(args.chat):
            messages.append({"role": "user", "content": text(args.prompt_words, 100 + turn)})
            body = {"max_tokens": args.tokens, "temperature": 0, "seed": 1}
            first, _, _, answer = server.stream("/v1/chat/completions", dict(body, messages=messages))
            alone = []
            for repeat in range(3):
                words = [{"role": "user", "content": text(args.prompt_words, hash((turn, repeat)))}]
                alone.append(server.stream("/v1/chat/completions", dict(body, messages=words, max_tokens=1))[0])
            alone = statistics.median(alone)
            messages.append({"role": "assistant", "content": answer})
            print(f"{turn + 1:4} {first:8.3f} {alone:8.3f} {first / alone:6.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(number) for number in text.split(",")]
    parser.add_argument("servers", nargs="+", metavar="NAME=URL", type=Server)
    parser.add_argument("--clients", type=numbers, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--prompt-words", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--shared", type=int, default=0, metavar="WORDS")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--chat", type=int, default=0, metavar="TURNS")
    parser.add_argument("--system-words", type=int, default=2000)
    parser.add_argument("--beside-prompt", type=int, default=0, metavar="WORDS")
    parser.add_argument("--most-tokens", type=int, default=4000, help="of an answer that is streamed beside a prompt")
    args = parser.parse_args()
    kind = conversation if args.chat else beside if args.beside_prompt else crowds
    kind(args.servers, args)


main()
