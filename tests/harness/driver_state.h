// What the calls of the stand-in driver share: contexts, modules, settings, the report at exit, and their checks.
#pragma once
#include <algorithm>

#include "standin_streams.h"
#include "kernels.h"

using namespace standin;

namespace {

struct Context {
    int references = 0;
    bool primary = false;
};

struct Module {
    std::vector<const harness::Kernel*> functions;
};

Context primary{0, true};
std::set<Context*> contexts;
std::set<Module*> modules;
thread_local std::vector<Context*> current;
bool initialised = false;
uint64_t launch_seed = 1;

int setting(const char* name, int otherwise) {
    const char* text = std::getenv(name);
    return text ? std::atoi(text) : otherwise;
}

int device_count() { return setting("STANDIN_DEVICES", 1); }
int architecture() { return setting("STANDIN_ARCHITECTURE", 90); }

// Path of a file that exists, empty, while this process runs, and afterwards only if there were faults, which it then lists. A
// parent that does not see the exit code learns from it that the check for leaks was made. Empty if not wanted.
std::string ending;

void note_start() {
    const char* folder = std::getenv("STANDIN_ENDINGS");
    if (!folder) return;
    ending = std::string(folder) + "/" + std::to_string(getpid());
    if (FILE* file = std::fopen(ending.c_str(), "w")) std::fclose(file);
}

void note_end() {
    if (ending.empty()) return;
    if (memory().faults.empty()) {
        std::remove(ending.c_str());
        return;
    }
    FILE* file = std::fopen(ending.c_str(), "w");
    if (!file) return;
    for (const std::string& fault : memory().faults) std::fprintf(file, "%s\n", fault.c_str());
    std::fclose(file);
}

void report_leaks() {
    std::string leaked;
    size_t bytes = 0, blocks[2] = {};
    for (const auto& [address, a] : memory().all) {
        if (a.freed) continue;
        ++blocks[a.kind == Kind::pinned];
        bytes += a.size;
    }
    const auto add = [&](size_t count, const char* what) {
        if (count) leaked += (leaked.empty() ? "" : ", ") + std::to_string(count) + " " + what;
    };
    add(blocks[0], "device allocations");
    add(blocks[1], "pinned allocations");
    add(memory().locked.size(), "locked ranges");
    add(device().streams.size(), "streams");
    add(device().events.size(), "events");
    add(device().graphs.size(), "graphs");
    add(device().execs.size(), "executable graphs");
    add(modules.size(), "modules");
    add((primary.references > 0) + contexts.size(), "contexts");
    if (!leaked.empty()) fault("leaked at exit: " + leaked + " (" + std::to_string(bytes) + " bytes)");
    note_end();
    if (!memory().faults.empty() && setting("STANDIN_STRICT", 0)) {
        std::fflush(nullptr);
        _exit(97);
    }
}

int check_context() {
    if (!initialised) return NOT_INITIALIZED;
    return current.empty() || !current.back() ? INVALID_CONTEXT : SUCCESS;
}

// Python's own, where Python is in the process.
extern "C" {
int Py_IsInitialized() __attribute__((weak));
int PyGILState_Check() __attribute__((weak));
void* PyEval_SaveThread() __attribute__((weak));
void PyEval_RestoreThread(void*) __attribute__((weak));
}

// The driver's lock. The thread that runs the queued work holds it, and that work may be Python's (the fake of TensorRT), which
// needs the GIL. PyCUDA makes many calls with the GIL held: one that has to wait here lets it go, or the two would wait for
// each other. NVIDIA's driver makes no callbacks under a lock, so only the stand-in needs this.
struct Lock {
    std::unique_lock<std::recursive_mutex> held{device().mutex, std::try_to_lock};
    Lock() {
        if (held.owns_lock()) return;
        const bool has_gil = PyGILState_Check && Py_IsInitialized() && PyGILState_Check();
        void* thread = has_gil ? PyEval_SaveThread() : nullptr;
        held.lock();
        if (thread) PyEval_RestoreThread(thread);
    }
};

}  // namespace

#define LOCK Lock lock
#define NEEDS_CONTEXT \
    LOCK; \
    if (const int status = check_context()) return status
#define NOT_IN_CAPTURE \
    if (const int status = forbidden_in_capture()) return status
#define STREAM(name, handle) \
    Stream* name = stream_of(handle); \
    if (!name) return INVALID_HANDLE
