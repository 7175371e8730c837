// The stand-in driver: initialisation, devices, errors and contexts.
#pragma once
#include "driver_state.h"

extern "C" {

int cuInit(unsigned) {
    LOCK;
    if (!initialised) {
        watch_faults();
        note_start();
        std::atexit(report_leaks);
    }
    initialised = true;
    return device_count() ? SUCCESS : 100;
}
// NVRTC looks for private tables when it finds a driver, and does without them.
int cuGetExportTable(const void** table, const void*) { return *table = nullptr, NOT_FOUND; }
int cuDriverGetVersion(int* version) { return *version = setting("STANDIN_DRIVER", 13000), SUCCESS; }
int cuDeviceGetCount(int* count) { return *count = device_count(), initialised ? SUCCESS : NOT_INITIALIZED; }
int cuDeviceGet(int* handle, int ordinal) {
    if (!initialised) return NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= device_count()) return INVALID_DEVICE;
    return *handle = ordinal, SUCCESS;
}
int cuDeviceGetName(char* name, int size, int) { return std::snprintf(name, (size_t)size, "stand-in"), SUCCESS; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = 1ull << 32, SUCCESS; }
int cuDeviceComputeCapability(int* major, int* minor, int) {
    return *major = architecture() / 10, *minor = architecture() % 10, SUCCESS;
}
int cuDeviceGetPCIBusId(char* id, int size, int) { return std::snprintf(id, (size_t)size, "0000:00:00.0"), SUCCESS; }
int cuDeviceGetUuid_v2(char* uuid, int) { return std::memset(uuid, 7, 16), SUCCESS; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 1: return *value = 1024, SUCCESS;            // threads a block
        case 2: case 3: return *value = 1024, SUCCESS;    // block x, y
        case 4: return *value = 64, SUCCESS;              // block z
        case 5: return *value = 0x7fffffff, SUCCESS;      // grid x
        case 6: case 7: return *value = 65535, SUCCESS;   // grid y, z
        case 8: return *value = 49152, SUCCESS;           // shared memory a block
        case 9: return *value = 65536, SUCCESS;           // constant memory
        case 10: return *value = 32, SUCCESS;             // warp
        case 12: return *value = 65536, SUCCESS;          // registers a block
        case 16: return *value = setting("STANDIN_MULTIPROCESSORS", 5), SUCCESS;
        case 17: case 18: case 20: case 34: case 35: return *value = 0, SUCCESS;  // timeout, integrated, mode, bus, slot
        case 19: case 31: case 40: case 41: return *value = 1, SUCCESS;  // host mapping, concurrency, copies, unified
        case 38: return *value = 1 << 20, SUCCESS;        // L2 cache
        case 39: return *value = 2048, SUCCESS;           // threads a multiprocessor
        case 75: return *value = architecture() / 10, SUCCESS;
        case 76: return *value = architecture() % 10, SUCCESS;
        case 97: return *value = 101376, SUCCESS;         // shared memory a block, opt-in
        case 115: return *value = 0, SUCCESS;             // memory pools
    }
    fault("cuDeviceGetAttribute: the stand-in has no attribute " + std::to_string(attribute));
    return INVALID_VALUE;
}

static const std::pair<int, std::pair<const char*, const char*>> ERRORS[] = {
    {0, {"CUDA_SUCCESS", "no error"}},
    {1, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
    {2, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
    {3, {"CUDA_ERROR_NOT_INITIALIZED", "initialization error"}},
    {100, {"CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"}},
    {101, {"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}},
    {200, {"CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"}},
    {201, {"CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
    {209, {"CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"}},
    {400, {"CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"}},
    {500, {"CUDA_ERROR_NOT_FOUND", "named symbol not found"}},
    {600, {"CUDA_ERROR_NOT_READY", "device not ready"}},
    {700, {"CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"}},
    {701, {"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"}},
    {900, {"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"}},
    {901, {"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"}},
    {903, {"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not initiated in this stream"}},
    {904, {"CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"}},
    {908, {"CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture from another thread"}},
};
int cuGetErrorName(int status, const char** text) {
    for (const auto& [code, words] : ERRORS)
        if (code == status) return *text = words.first, SUCCESS;
    return *text = nullptr, INVALID_VALUE;
}
int cuGetErrorString(int status, const char** text) {
    for (const auto& [code, words] : ERRORS)
        if (code == status) return *text = words.second, SUCCESS;
    return *text = nullptr, INVALID_VALUE;
}

int cuDevicePrimaryCtxRetain(void** context, int ordinal) {
    LOCK;
    if (!initialised) return NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= device_count()) return INVALID_DEVICE;
    ++primary.references;
    return *context = &primary, SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int) {
    LOCK;
    if (!primary.references) return INVALID_CONTEXT;
    run_device();
    --primary.references;
    return SUCCESS;
}
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
    return *flags = 0, *active = primary.references > 0, SUCCESS;
}
int cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return SUCCESS; }
int cuCtxCreate_v2(void** context, unsigned, int) {
    LOCK;
    if (!initialised) return NOT_INITIALIZED;
    auto* made = new Context{1, false};
    contexts.insert(made);
    current.push_back(made);
    return *context = made, SUCCESS;
}
int cuCtxCreate_v4(void** context, void*, unsigned flags, int ordinal) { return cuCtxCreate_v2(context, flags, ordinal); }
int cuCtxDestroy_v2(void* context) {
    LOCK;
    if (!contexts.erase((Context*)context)) return INVALID_CONTEXT;
    run_device();
    current.erase(std::remove(current.begin(), current.end(), (Context*)context), current.end());
    delete (Context*)context;
    return SUCCESS;
}
static bool is_context(void* context) { return context == &primary || contexts.count((Context*)context); }
int cuCtxPushCurrent_v2(void* context) {
    LOCK;
    if (!is_context(context)) return INVALID_CONTEXT;
    current.push_back((Context*)context);
    return SUCCESS;
}
int cuCtxPopCurrent_v2(void** context) {
    if (current.empty()) return INVALID_CONTEXT;
    if (context) *context = current.back();
    current.pop_back();
    return SUCCESS;
}
int cuCtxSetCurrent(void* context) {
    LOCK;
    if (context && !is_context(context)) return INVALID_CONTEXT;
    if (!current.empty()) current.pop_back();
    if (context) current.push_back((Context*)context);
    return SUCCESS;
}
int cuCtxGetCurrent(void** context) { return *context = current.empty() ? nullptr : current.back(), SUCCESS; }
int cuCtxGetDevice(int* ordinal) {
    NEEDS_CONTEXT;
    return *ordinal = 0, SUCCESS;
}
int cuCtxGetApiVersion(void*, unsigned* version) { return *version = 3020, SUCCESS; }
int cuCtxGetFlags(unsigned* flags) { return *flags = 0, SUCCESS; }
int cuCtxGetStreamPriorityRange(int* least, int* greatest) { return *least = 0, *greatest = -1, SUCCESS; }
int cuCtxSynchronize() {
    NEEDS_CONTEXT;
    NOT_IN_CAPTURE;
    ++device().counters.waits;
    run_device();
    return SUCCESS;
}

}  // extern "C"
