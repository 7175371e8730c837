// The stand-in driver: modules, launches, capture and graphs.
#pragma once
#include "driver_state.h"

extern "C" {

int cuModuleLoadData(void** handle, const void* image) {
    NEEDS_CONTEXT;
    const auto* bytes = (const unsigned char*)image;
    if (std::memcmp(bytes, "\x7f" "ELF", 4)) return INVALID_IMAGE;
    // A cubin of CUDA 13 names its architecture in the second byte of e_flags. One for another major does not load.
    const int made_for = bytes[49];
    if (made_for / 10 != architecture() / 10 || made_for > architecture()) return NO_BINARY;
    auto* module = new Module;
    modules.insert(module);
    return *handle = module, SUCCESS;
}
int cuModuleLoadDataEx(void** handle, const void* image, unsigned, void*, void*) { return cuModuleLoadData(handle, image); }
int cuModuleUnload(void* handle) {
    NEEDS_CONTEXT;
    run_device();
    if (!modules.erase((Module*)handle)) return INVALID_HANDLE;
    delete (Module*)handle;
    return SUCCESS;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
    NEEDS_CONTEXT;
    if (!modules.count((Module*)module)) return INVALID_HANDLE;
    const harness::Kernel* kernel = harness::find_kernel(name);
    if (!kernel) return NOT_FOUND;
    return *function = (void*)kernel, SUCCESS;
}
int cuFuncGetAttribute(int* value, int attribute, void* function) {
    if (attribute == 0) return *value = (int)((harness::Kernel*)function)->max_threads, SUCCESS;
    return *value = 0, SUCCESS;
}
int cuFuncSetAttribute(void*, int, int) { return SUCCESS; }
int cuFuncSetBlockShape(void*, int, int, int) { return SUCCESS; }  // PyCUDA calls it, then gives the block again
int cuFuncSetCacheConfig(void*, int) { return SUCCESS; }
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared_bytes, void* handle, void** params, void** extra) {
    NEEDS_CONTEXT;
    STREAM(stream, handle);
    const auto* kernel = (const harness::Kernel*)function;
    if (!harness::find_kernel(kernel->name)) return INVALID_HANDLE;
    if (!gx || !gy || !gz || !bx || !by || !bz || gy > 65535 || gz > 65535 || bx * by * bz > 1024) return INVALID_VALUE;
    if (bx * by * bz > kernel->max_threads || shared_bytes > 49152) return OUT_OF_RESOURCES;
    std::vector<unsigned char> bytes(kernel->params_bytes);
    if (params) {
        std::memcpy(bytes.data(), params[0], bytes.size());
    } else {  // PyCUDA packs: {1, buffer, 2, size, 0}
        if (!extra || *(size_t*)extra[3] != bytes.size()) return INVALID_VALUE;
        std::memcpy(bytes.data(), extra[1], bytes.size());
    }
    ++device().counters.launches;
    harness::Launch launch;
    launch.grid = {gx, gy, gz};
    launch.block = {bx, by, bz};
    launch.shared_bytes = shared_bytes;
    launch.resident = 2;
    return enqueue(*stream, kernel->name, [=]() mutable {
        launch.seed = ++launch_seed;
        alignas(16) unsigned char aligned[4096];
        std::memcpy(aligned, bytes.data(), bytes.size());
        harness::run(launch, kernel->call, aligned);
    });
}

int cuStreamBeginCapture_v2(void* handle, int mode) {
    NEEDS_CONTEXT;
    STREAM(stream, handle);
    return begin_capture(*stream, (CaptureMode)mode);
}
int cuStreamEndCapture(void* handle, void** graph) {
    NEEDS_CONTEXT;
    STREAM(stream, handle);
    return end_capture(*stream, (Graph**)graph);
}
int cuStreamIsCapturing(void* handle, int* status) {
    NEEDS_CONTEXT;
    STREAM(stream, handle);
    return *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1, SUCCESS;
}
int cuThreadExchangeStreamCaptureMode(int* mode) { return *mode = MODE_GLOBAL, SUCCESS; }
int cuGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long) {
    NEEDS_CONTEXT;
    if (!device().graphs.count((Graph*)graph)) return INVALID_VALUE;
    auto* made = new GraphExec{((Graph*)graph)->operations};
    device().execs.insert(made);
    return *exec = made, SUCCESS;
}
int cuGraphGetNodes(void* graph, void** nodes, size_t* count) {
    LOCK;
    if (!device().graphs.count((Graph*)graph)) return INVALID_VALUE;
    const auto& operations = ((Graph*)graph)->operations;
    for (size_t i = 0; nodes && i < std::min(*count, operations.size()); ++i) nodes[i] = (void*)&operations[i];
    return *count = operations.size(), SUCCESS;
}
int cuGraphUpload(void*, void*) { return SUCCESS; }
int cuGraphLaunch(void* exec, void* handle) {
    NEEDS_CONTEXT;
    STREAM(stream, handle);
    if (!device().execs.count((GraphExec*)exec)) return INVALID_VALUE;
    ++device().counters.graph_launches;
    return enqueue(*stream, "graph", [=] {
        if (!device().execs.count((GraphExec*)exec)) return fault("a graph was destroyed while it was queued");
        for (Operation& operation : ((GraphExec*)exec)->operations) execute(operation);
    });
}
int cuGraphDestroy(void* graph) {
    LOCK;
    if (!device().graphs.erase((Graph*)graph)) return INVALID_VALUE;
    delete (Graph*)graph;
    return SUCCESS;
}
int cuGraphExecDestroy(void* exec) {
    NEEDS_CONTEXT;
    run_device();
    if (!device().execs.erase((GraphExec*)exec)) return INVALID_VALUE;
    delete (GraphExec*)exec;
    return SUCCESS;
}

}  // extern "C"
