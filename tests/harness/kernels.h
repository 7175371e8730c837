// The kernels themselves, compiled by g++, by their entry names.
#pragma once
#include <string>

#include "cuda_fp16.h"
#include "grid.h"
#include "params.cuh"

namespace decode_source {
#include "decode.cu"
}
namespace preprocess_source {
#include "preprocess.cu"
}

namespace harness {

struct Kernel {
    const char* name;
    size_t params_bytes;
    unsigned max_threads;
    void (*call)(const void*);
};

inline const Kernel* find_kernel(const std::string& name) {
    using namespace decode_source;
    using namespace preprocess_source;
    static const Kernel kernels[] = {
        {"decode_half", sizeof(DecodeParams), MAX_THREADS, [](const void* p) { decode_half(*(const DecodeParams*)p); }},
        {"decode_float", sizeof(DecodeParams), MAX_THREADS, [](const void* p) { decode_float(*(const DecodeParams*)p); }},
        {"preprocess_half", sizeof(PreprocessParams), THREADS,
         [](const void* p) { preprocess_half(*(const PreprocessParams*)p); }},
        {"preprocess_float", sizeof(PreprocessParams), THREADS,
         [](const void* p) { preprocess_float(*(const PreprocessParams*)p); }},
        {"nothing", 8, 1024, [](const void*) {}},  // the benchmark's: a launch, and a wait, which need not last here
        {"occupy", 8, 1024, [](const void*) {}},
    };
    for (const Kernel& kernel : kernels)
        if (name == kernel.name) return &kernel;
    return nullptr;
}

}  // namespace harness
