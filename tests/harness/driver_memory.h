// The stand-in driver: device and pinned memory, copies and fills.
#pragma once
#include "driver_state.h"

extern "C" {

static int take(void** address, size_t size, Kind kind) {
    if (!size) return INVALID_VALUE;
    ++device().counters.allocations;
    *address = allocate(size, kind);
    return *address ? SUCCESS : 2;
}
int cuMemAlloc_v2(void** address, size_t size) {
    NEEDS_CONTEXT;
    NOT_IN_CAPTURE;
    return take(address, size, Kind::device);
}
int cuMemFree_v2(uintptr_t address) {
    NEEDS_CONTEXT;
    NOT_IN_CAPTURE;
    run_device();
    return release(address, Kind::device) ? SUCCESS : INVALID_VALUE;
}
int cuMemHostAlloc(void** address, size_t size, unsigned) {
    NEEDS_CONTEXT;
    NOT_IN_CAPTURE;
    return take(address, size, Kind::pinned);
}
int cuMemAllocHost_v2(void** address, size_t size) { return cuMemHostAlloc(address, size, 0); }
int cuMemFreeHost(void* address) {
    NEEDS_CONTEXT;
    NOT_IN_CAPTURE;
    run_device();
    return release((uintptr_t)address, Kind::pinned) ? SUCCESS : INVALID_VALUE;
}
int cuMemHostGetDevicePointer_v2(uintptr_t* to, void* from, unsigned) { return *to = (uintptr_t)from, SUCCESS; }
int cuMemGetInfo_v2(size_t* left, size_t* total) {
    NEEDS_CONTEXT;
    *total = *left = 1ull << 32;
    for (const auto& [address, a] : memory().all)
        if (!a.freed && a.kind == Kind::device) *left -= a.size;
    return SUCCESS;
}

// Memory of the caller's own, locked: begin -> bytes.
int cuMemHostRegister_v2(void* address, size_t size, unsigned) {
    NEEDS_CONTEXT;
    NOT_IN_CAPTURE;
    const uintptr_t begin = (uintptr_t)address;
    if (!size || find(begin)) return INVALID_VALUE;
    for (const auto& [other, bytes] : memory().locked)
        if (begin < other + bytes && other < begin + size) return 712;  // locked already
    memory().locked[begin] = size;
    return SUCCESS;
}
int cuMemHostUnregister(void* address) {
    NEEDS_CONTEXT;
    NOT_IN_CAPTURE;
    run_device();
    return memory().locked.erase((uintptr_t)address) ? SUCCESS : 713;
}
int cuPointerGetAttribute(void* value, int attribute, uintptr_t address) {
    NEEDS_CONTEXT;
    if (attribute != 2) return INVALID_VALUE;  // the kind of memory
    const Allocation* a = find(address);
    if ((!a || a->freed) && !locked(address, 1)) return INVALID_VALUE;
    return *(unsigned*)value = a && a->kind == Kind::device ? 2 : 1, SUCCESS;
}

static bool pinned(uintptr_t address) {
    if (locked(address, 1)) return true;
    const Allocation* a = find(address);
    return a && !a->freed && a->kind == Kind::pinned;
}

// `host` is the side that may be pageable: 0 none, 1 the source, 2 the target.
static int copy(uintptr_t to, uintptr_t from, size_t size, void* handle, int host, const char* name) {
    NEEDS_CONTEXT;
    STREAM(stream, handle);
    ++device().counters.copies;
    const bool pageable = host && !pinned(host == 1 ? from : to);
    if (!(host == 1 && pageable) && !check_range(from, size, name)) return INVALID_VALUE;
    if (!(host == 2 && pageable) && !check_range(to, size, name)) return INVALID_VALUE;
    if (pageable && stream->capture) {
        fault(std::string(name) + " of pageable memory in a capture: the graph would read it at every replay");
        stream->capture->invalid = true;
        return CAPTURE_UNSUPPORTED;
    }
    const auto move = [=] {
        if (!(host == 1 && pageable) && !check_range(from, size, name)) return;
        if (!(host == 2 && pageable) && !check_range(to, size, name)) return;
        std::memcpy((void*)to, (const void*)from, size);
    };
    if (!pageable) return enqueue(*stream, name, move);
    if (host == 1) {  // staged: the caller may change the memory at once
        std::vector<char> staged((const char*)from, (const char*)from + size);
        return enqueue(*stream, name, [=] {
            if (check_range(to, size, name)) std::memcpy((void*)to, staged.data(), size);
        });
    }
    const int status = enqueue(*stream, name, move);
    run_all(*stream);
    return status;
}
static int copy_now(uintptr_t to, uintptr_t from, size_t size, int host, const char* name) {
    {
        NEEDS_CONTEXT;
        NOT_IN_CAPTURE;
    }
    const int status = copy(to, from, size, nullptr, host, name);
    LOCK;
    run_all(device().legacy);
    return status;
}
int cuMemcpyHtoDAsync_v2(uintptr_t to, const void* from, size_t size, void* stream) {
    return copy(to, (uintptr_t)from, size, stream, 1, "copy to the device");
}
int cuMemcpyDtoHAsync_v2(void* to, uintptr_t from, size_t size, void* stream) {
    return copy((uintptr_t)to, from, size, stream, 2, "copy to the host");
}
int cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t size, void* stream) {
    return copy(to, from, size, stream, 0, "copy on the device");
}
int cuMemcpyHtoD_v2(uintptr_t to, const void* from, size_t size) {
    return copy_now(to, (uintptr_t)from, size, 1, "copy to the device");
}
int cuMemcpyDtoH_v2(void* to, uintptr_t from, size_t size) {
    return copy_now((uintptr_t)to, from, size, 2, "copy to the host");
}
int cuMemcpyDtoD_v2(uintptr_t to, uintptr_t from, size_t size) { return copy_now(to, from, size, 0, "copy on the device"); }

static int set_memory(uintptr_t to, uint32_t value, size_t width, size_t count, void* handle) {
    NEEDS_CONTEXT;
    STREAM(stream, handle);
    const size_t size = width * count;
    if (!check_range(to, size, "memset")) return INVALID_VALUE;
    return enqueue(*stream, "memset", [=] {
        if (!check_range(to, size, "memset")) return;
        for (size_t i = 0; i < size; i += width) std::memcpy((char*)to + i, &value, width);
    });
}
int cuMemsetD8Async(uintptr_t to, unsigned char value, size_t count, void* stream) {
    return set_memory(to, value, 1, count, stream);
}
int cuMemsetD32Async(uintptr_t to, unsigned value, size_t count, void* stream) {
    return set_memory(to, value, 4, count, stream);
}
int cuMemsetD8_v2(uintptr_t to, unsigned char value, size_t count) { return set_memory(to, value, 1, count, nullptr); }
int cuMemsetD32_v2(uintptr_t to, unsigned value, size_t count) { return set_memory(to, value, 4, count, nullptr); }

}  // extern "C"
