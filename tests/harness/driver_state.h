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
    add(device().streams.size(), "streams");
    add(device().events.size(), "events");
    add(device().graphs.size(), "graphs");
    add(device().execs.size(), "executable graphs");
    add(modules.size(), "modules");
    add((primary.references > 0) + contexts.size(), "contexts");
    if (!leaked.empty()) fault("leaked at exit: " + leaked + " (" + std::to_string(bytes) + " bytes)");
    if (!memory().faults.empty() && setting("STANDIN_STRICT", 0)) {
        std::fflush(nullptr);
        _exit(97);
    }
}

int check_context() {
    if (!initialised) return NOT_INITIALIZED;
    return current.empty() || !current.back() ? INVALID_CONTEXT : SUCCESS;
}

}  // namespace

#define LOCK std::lock_guard<std::recursive_mutex> lock(device().mutex)
#define NEEDS_CONTEXT \
    LOCK; \
    if (const int status = check_context()) return status
#define NOT_IN_CAPTURE \
    if (const int status = forbidden_in_capture()) return status
#define STREAM(name, handle) \
    Stream* name = stream_of(handle); \
    if (!name) return INVALID_HANDLE
