// A stand-in for libcuda.so.1: the driver calls that PyCUDA and cuda-bindings make for us, over host memory, running the
// kernels that g++ compiled. Every other symbol of the driver aborts by its name (stubs.inc, generated from cuda.h).
#include "driver_devices.h"
#include "driver_memory.h"
#include "driver_streams.h"
#include "driver_launches.h"

// For tests only.
extern "C" {

// Launches, graph launches, copies, waits, allocations so far.
void standin_counters(uint64_t* to) {
    LOCK;
    std::memcpy(to, &device().counters, sizeof(Counters));
}
// Events for which a waiting thread sleeps.
int standin_sleeping_events() {
    LOCK;
    return (int)std::count_if(device().events.begin(), device().events.end(), [](const Event* e) { return e->sleeps; });
}
int standin_fault_count() {
    LOCK;
    check_canaries();
    return (int)memory().faults.size();
}
// The last faults, oldest first, one a line; they are forgotten.
void standin_take_faults(char* to, size_t size) {
    LOCK;
    std::string all;
    for (const auto& one : memory().faults) all += one + "\n";
    memory().faults.clear();
    std::snprintf(to, size, "%s", all.c_str());
}

}  // extern "C"

#include "stubs.inc"
