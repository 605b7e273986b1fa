#!/bin/sh
# Compile llama.cpp's libraries, CPU kernels and programs. Runs inside a build sandbox:
#
#     compile-cpu.sh SOURCE OUT BUILD COMMIT
#
# SOURCE: the vendored llama.cpp; OUT: gets bin/ and lib/; BUILD: scratch folder; COMMIT: what
# `--version` of the programs shall print as the source's name.
#
# GGML_CPU_ALL_VARIANTS: one kernel library for each generation of CPUs, chosen when a program
# starts, so that one image is fast on every node and never dies of an illegal instruction.
# GGML_BACKEND_DIR: where programs and `import llama_cpp` look for those libraries; without it only
# programs that lie beside them find any ("no backends are loaded").
# The flags are part of the cache key: this file is hashed with the source.
set -eu
source=$1 out=$2 build=$3 commit=$4
programs='llama-bench llama-quantize llama-perplexity llama-imatrix llama-server llama-cli
          llama-completion llama-gguf-split llama-tokenize llama-batched-bench ggml-rpc-server'

# A thread writes the programs' lines, and the logger is never destroyed (llama.cpp#22142): without
# this, what is in its queue when a program ends is lost, llama-perplexity's results first of all.
log=$source/common/log.cpp
sed -i 's|^ *log = new common_log;$|&\n        std::atexit([] { log->pause(); });|' "$log"
grep -q 'std::atexit' "$log"

# GCC's _tile_loadconfig names only the first bytes of what it reads, so the compiler drops the
# others, and the first AMX instruction is an illegal one (seen on a Sapphire Rapids; also
# llama.cpp#26954): whatever is in memory must be there before it.
amx=$source/ggml/src/ggml-cpu/amx/mmq.cpp
sed -i 's|^ *_tile_loadconfig(&tc);$|    asm volatile("" : : "r"(\&tc) : "memory");\n&|' "$amx"
grep -q 'asm volatile' "$amx"

# shellcheck disable=SC2016  # $ORIGIN is the loader's
cmake -S "$source" -B "$build" -G Ninja \
    -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_C_FLAGS="-ffile-prefix-map=$source=llama.cpp -ffile-prefix-map=$build=build" \
    -DCMAKE_CXX_FLAGS="-ffile-prefix-map=$source=llama.cpp -ffile-prefix-map=$build=build" \
    -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH='$ORIGIN:$ORIGIN/../lib' \
    -DBUILD_SHARED_LIBS=ON \
    -DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DGGML_RPC=ON \
    -DGGML_BACKEND_DIR=/opt/llama.cpp/lib -DGGML_CCACHE=OFF \
    -DLLAMA_BUILD_COMMIT="$commit" -DLLAMA_BUILD_NUMBER=0 \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON \
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
# shellcheck disable=SC2086  # a list of targets
cmake --build "$build" --target $programs mtmd

mkdir -p "$out/bin" "$out/lib"
for program in $programs; do
    cp "$build/bin/$program" "$out/bin/"
done
cp -P "$build"/bin/lib*.so* "$out/lib/"
strip --strip-unneeded "$out"/bin/* "$out"/lib/*.so*
