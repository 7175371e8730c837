// Runs launches that come on standard input, until it ends. See tests/helpers/cpu_kernels.py for the other side.
//
// Memory is allocated to the byte, so that AddressSanitizer sees every step outside. Addresses in the parameters and in
// buffers that hold some are written by the other side as ADDRESS_TAG | buffer << 32 | offset, and are translated here.
#include <unistd.h>

#include "kernels.h"

namespace {

const uint64_t ADDRESS_TAG = 0x7abcull << 48;

void read_all(void* to, size_t size) {
    for (char* at = (char*)to; size;) {
        const ssize_t got = read(0, at, size);
        if (got <= 0) std::exit(got == 0 ? 0 : 1);
        at += got;
        size -= (size_t)got;
    }
}

void write_all(const void* from, size_t size) {
    for (const char* at = (const char*)from; size;) {
        const ssize_t put = write(1, at, size);
        if (put <= 0) std::exit(1);
        at += put;
        size -= (size_t)put;
    }
}

template <typename T>
T read_one() {
    T value;
    read_all(&value, sizeof value);
    return value;
}

struct Buffer {
    std::unique_ptr<unsigned char[]> data;
    uint64_t size;
    uint32_t addresses;  // its 8-byte words may be addresses
};

void translate(unsigned char* data, size_t size, std::vector<Buffer>& buffers) {
    for (size_t at = 0; at + 8 <= size; at += 8) {
        uint64_t word;
        std::memcpy(&word, data + at, 8);
        if (word >> 48 != ADDRESS_TAG >> 48) continue;
        const size_t buffer = word >> 32 & 0xffff, offset = word & 0xffffffff;
        if (buffer >= buffers.size() || offset > buffers[buffer].size) harness::fail("an address outside every buffer");
        const uint64_t address = (uint64_t)(buffers[buffer].data.get() + offset);
        std::memcpy(data + at, &address, 8);
    }
}

}  // namespace

int main() {
    for (;;) {
        char name[32] = {};
        read_all(name, sizeof name);
        harness::Launch launch;
        read_all(&launch.grid, sizeof(dim3));
        read_all(&launch.block, sizeof(dim3));
        launch.shared_bytes = read_one<uint32_t>();
        launch.resident = read_one<uint32_t>();
        launch.abort_after = read_one<uint32_t>();
        launch.sleep_at = read_one<uint32_t>();
        launch.seed = read_one<uint64_t>();
        std::vector<unsigned char> params(read_one<uint32_t>());
        read_all(params.data(), params.size());
        std::vector<Buffer> buffers(read_one<uint32_t>());
        for (Buffer& buffer : buffers) {
            buffer.size = read_one<uint64_t>();
            buffer.addresses = read_one<uint32_t>();
            buffer.data.reset(new unsigned char[buffer.size]);
            read_all(buffer.data.get(), buffer.size);
        }
        const harness::Kernel* kernel = harness::find_kernel(name);
        if (!kernel) harness::fail(std::string("no kernel is called ") + name);
        if (params.size() != kernel->params_bytes) harness::fail("the parameter struct has another size than the kernel's");
        if (launch.block.x * launch.block.y * launch.block.z > kernel->max_threads) harness::fail("too many threads");
        std::vector<std::vector<unsigned char>> originals;  // what to send back where addresses were translated
        for (Buffer& buffer : buffers) {
            originals.emplace_back();
            if (!buffer.addresses) continue;
            originals.back().assign(buffer.data.get(), buffer.data.get() + buffer.size);
            translate(buffer.data.get(), buffer.size, buffers);
        }
        translate(params.data(), params.size(), buffers);
        harness::run(launch, kernel->call, params.data());
        for (size_t i = 0; i < buffers.size(); ++i) {
            write_all(buffers[i].addresses ? originals[i].data() : buffers[i].data.get(), buffers[i].size);
        }
    }
}
