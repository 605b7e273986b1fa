#!/bin/sh
# Compile llama.cpp's CUDA backend alone, a library beside the cpu flavour's. Runs in a build sandbox:
#
#     compile-cuda.sh SOURCE OUT BUILD ARCHITECTURES COMPILER_LOCK
#
# The CUDA compiler comes from NVIDIA's Python packages, locked to one release: left alone, pip mixes
# releases and ptxas refuses its input ("Unsupported .version"). It does not stay in the image; the
# libraries that the backend loads (cudart, cublas) are those of the image's torch.
#
# GGML_CUDA_NO_VMM: nothing to link against libcuda for, which only a node with a driver has.
# GGML_CUDA_NCCL=OFF: the compiler's packages have no NCCL headers.
set -eu
source=$1 out=$2 build=$3 architectures=$4 lock=$5
. /mnt/build-tools.sh
cuda=/build/cuda
python3 "$(ls /usr/share/python-wheels/pip-*.whl)/pip" install --quiet --no-deps --require-hashes \
    --no-cache-dir --root-user-action ignore --target "$cuda" -r "$lock"
root=$(dirname "$(dirname "$(find "$cuda" -name nvcc -path '*/bin/*')")")
# What a toolkit has and the packages lack: names without versions, and lib64.
for library in "$root"/lib/lib*.so.*; do
    link=${library%.so.*}.so
    [ -e "$link" ] || ln -s "$(basename "$library")" "$link"
done
[ -e "$root/lib64" ] || ln -s lib "$root/lib64"
[ -x "$root/bin/nvcc" ] || chmod +x "$root"/bin/* "$root"/nvvm/bin/*

export PATH="$tools/bin:$root/bin:$PATH"
cmake -S "$source" -B "$build" -G Ninja \
    -DCMAKE_BUILD_TYPE=Release \
    -DCUDAToolkit_ROOT="$root" -DCMAKE_CUDA_COMPILER="$root/bin/nvcc" \
    -DCMAKE_CUDA_ARCHITECTURES="$architectures" \
    -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
    -DCMAKE_INSTALL_RPATH="\$ORIGIN:/usr/local/lib/python3.11/dist-packages/nvidia/cu13/lib" \
    -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU=OFF \
    -DGGML_CUDA=ON -DGGML_CUDA_NO_VMM=ON -DGGML_CUDA_NCCL=OFF -DGGML_CCACHE=OFF \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF
cmake --build "$build" --target ggml-cuda
mkdir -p "$out/lib"
cp "$(find "$build" -name libggml-cuda.so)" "$out/lib/"
strip --strip-unneeded "$out"/lib/*.so
