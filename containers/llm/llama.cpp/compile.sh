#!/bin/sh
# Inside the compile sandbox: fetch the locked source, compile one flavour into /mnt/out.
#
#     compile.sh cpu none | compile.sh cuda13 '90-real;100-real'
set -eu
flavour=$1 architectures=$2
scripts=/mnt/llama.cpp-scripts
. /mnt/build-tools.sh
export PATH="$tools/bin:$PATH" PYTHONPATH="$tools" CMAKE_PREFIX_PATH="$tools"
pip="python3 $(ls /usr/share/python-wheels/pip-*.whl)/pip"

mkdir -p /build && cd /build
$pip download --quiet --no-deps --no-build-isolation --no-binary :all: --no-cache-dir --require-hashes \
    --dest . -r "$scripts/source.lock"
archive=$(ls llama_cpp_python-*.tar.gz)
tar -xzf "$archive"
package=/build/${archive%.tar.gz}
source=$package/vendor/llama.cpp

if [ "$flavour" = cpu ]; then
    sh "$scripts/compile-cpu.sh" "$source" /mnt/out /build/objects "${archive%.tar.gz}"
    # The Python package alone: it loads the libraries that were just compiled.
    $pip wheel --quiet --no-deps --no-build-isolation --no-cache-dir --wheel-dir /mnt/out/wheel \
        --config-settings=cmake.define.LLAMA_BUILD=OFF \
        --config-settings=cmake.define.LLAVA_BUILD=OFF "$package"
    mkdir -p /mnt/out/converter
    cp -R "$source/convert_hf_to_gguf.py" "$source/convert_lora_to_gguf.py" "$source/conversion" \
        "$source/gguf-py" /mnt/out/converter/
    rm -rf /mnt/out/converter/gguf-py/tests /mnt/out/converter/gguf-py/examples
    for script in convert_hf_to_gguf convert_lora_to_gguf; do
        printf '#!/bin/sh\nexec python3 /opt/llama.cpp/converter/%s.py "$@"\n' "$script" \
            > "/mnt/out/bin/$script"
        chmod 755 "/mnt/out/bin/$script"
    done
    mkdir -p /mnt/out/licenses
    cp "$source/LICENSE" /mnt/out/licenses/llama.cpp.txt
    cp "$package/LICENSE.md" /mnt/out/licenses/llama-cpp-python.md
else
    sh "$scripts/compile-cuda.sh" "$source" /mnt/out /build/objects "$architectures" \
        "$scripts/$flavour-compiler.lock"
fi
