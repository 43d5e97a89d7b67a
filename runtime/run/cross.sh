#!/usr/bin/env bash
# Builds lapidary-run as static files, which run on any Linux of their architecture, whatever its C library.
#
#     runtime/run/cross.sh [--install] [ARCHITECTURE...]
#
# Out: target/boards/lapidary-run-ARCHITECTURE, for x86_64 and aarch64 unless named. Another architecture needs a linker
# and Rust's standard library for it. --install gets what is missing: the standard library by rustup or, where rustup or
# its server is missing, Debian's for aarch64; C compilers by apt-get. LAPIDARY_BOARDS_RUST=debian takes Debian's in any
# case.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

install=0
architectures=()
for argument in "$@"; do
    case $argument in
        --install) install=1 ;;
        -*)
            echo "error: $argument: expected --install or architectures" >&2
            exit 2
            ;;
        *) architectures+=("$argument") ;;
    esac
done
[[ ${#architectures[@]} -gt 0 ]] || architectures=(x86_64 aarch64)

fail() {
    echo "error: $1" >&2
    exit 1
}

apt_install() {
    apt-get update -q >/dev/null && apt-get install -qy --no-install-recommends "$@" >/dev/null
}

# Whether a compiler has the standard library for a triple.
has_library() {
    local root
    root=$("$1" --print sysroot 2>/dev/null) && compgen -G "$root/lib/rustlib/$2/lib/libstd-*.rlib" >/dev/null
}

# Sets `rustc` to a compiler that has the standard library for a triple.
find_compiler() {
    local triple=$1
    if [[ ${LAPIDARY_BOARDS_RUST:-} != debian ]]; then
        rustc=rustc
        has_library rustc "$triple" && return
        if [[ $install = 1 ]] && command -v rustup >/dev/null; then
            rustup target add "$triple" || echo "rustup has no standard library for $triple" >&2
            has_library rustc "$triple" && return
        fi
    fi
    rustc=/usr/bin/rustc
    has_library "$rustc" "$triple" && return
    # The version must be the compiler's, which Debian's dependencies see to.
    if [[ $install = 1 && $triple = aarch64-* ]] && command -v dpkg >/dev/null; then
        dpkg --add-architecture arm64
        apt_install rustc-web libstd-rust-web-dev:arm64 || true
        has_library "$rustc" "$triple" && return
    fi
    fail "Rust has no standard library for $triple: \`rustup target add $triple\`, or run this with --install"
}

# Sets `linker`.
find_linker() {
    local architecture=$1
    linker=$architecture-linux-gnu-gcc
    [[ $architecture = "$(uname -m)" ]] && linker=cc
    command -v "$linker" >/dev/null && return
    if [[ $install = 1 ]] && command -v apt-get >/dev/null; then
        apt_install gcc libc6-dev "gcc-${architecture//_/-}-linux-gnu" || true
        command -v "$linker" >/dev/null && return
    fi
    fail "$linker is missing: it links for $architecture"
}

out=${CARGO_TARGET_DIR:-target}/boards
mkdir -p "$out"
for architecture in "${architectures[@]}"; do
    triple=$architecture-unknown-linux-gnu
    [[ $architecture = riscv64 ]] && triple=riscv64gc-unknown-linux-gnu
    find_compiler "$triple"
    find_linker "$architecture"
    variable=${triple//-/_}
    # A dynamic glibc of another architecture hangs under QEMU 7.2 when the first thread starts; and a static file asks
    # for no version of glibc. At a fixed address it needs no relocations, which are another tenth of the file.
    env "RUSTC=$rustc" "CARGO_TARGET_${variable^^}_LINKER=$linker" \
        RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
        cargo rustc --profile small -p lapidary-run --target "$triple" --target-dir "$out/build" -- \
        -C "link-arg=-Wl,-T,$PWD/runtime/run/static.ld" -C link-arg=-Wl,--no-eh-frame-hdr
    # Renamed, so that a test never runs half a file.
    cp "$out/build/$triple/small/lapidary-run" "$out/.lapidary-run-$architecture"
    mv "$out/.lapidary-run-$architecture" "$out/lapidary-run-$architecture"
    echo "$out/lapidary-run-$architecture: $(stat -c %s "$out/lapidary-run-$architecture") bytes"
done
