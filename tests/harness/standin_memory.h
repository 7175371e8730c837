// Device and pinned memory of the stand-in driver: pages of their own with a guard page after each, never reused, so that
// a step outside or into freed memory stops the process with a sentence that says where.
#pragma once
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <string>
#include <vector>

#include "fibers.h"

namespace standin {

enum class Kind { device, pinned };

struct Allocation {
    unsigned char* data;
    size_t size;
    unsigned char* pages;
    size_t page_bytes;  // without the guard
    Kind kind;
    bool freed;
};

struct Memory {
    std::map<uintptr_t, Allocation> all;  // by data; freed ones stay, to be recognised
    std::map<uintptr_t, size_t> locked;   // the caller's own memory that was page-locked: begin -> bytes
    std::vector<std::string> faults;
    const char* running = "";  // what the device is doing, for the fault's report
};

inline Memory& memory() {
    static Memory* const instance = new Memory;
    return *instance;
}

inline void fault(const std::string& what) {
    memory().faults.push_back(what);
    std::fprintf(stderr, "STANDIN: %s\n", what.c_str());
    std::fflush(stderr);
}

const unsigned char CANARY = 0xcb;
const unsigned char POISON = 0xff;  // NaN as floats: reading unwritten memory shows

inline const char* name_of(Kind kind) { return kind == Kind::device ? "device" : "pinned"; }

inline void on_segv(int, siginfo_t* info, void*) {
    const uintptr_t at = (uintptr_t)info->si_addr;
    for (const auto& [address, a] : memory().all) {
        if (at < (uintptr_t)a.pages || at >= (uintptr_t)a.pages + a.page_bytes + 4096) continue;
        std::fprintf(stderr, "STANDIN: %s touched byte %ld of %s memory of %zu bytes%s\n", memory().running,
                     (long)(at - address), name_of(a.kind), a.size, a.freed ? ", which was freed" : "");
        std::fflush(stderr);
        _exit(98);
    }
    signal(SIGSEGV, SIG_DFL);
    raise(SIGSEGV);
}

inline void watch_faults() {
    struct sigaction action = {};
    action.sa_sigaction = on_segv;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, nullptr);
}

inline void* allocate(size_t size, Kind kind) {
    const size_t aligned = (size + 255) / 256 * 256, page_bytes = (aligned + 4095) / 4096 * 4096;
    void* pages = mmap(nullptr, page_bytes + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) return nullptr;
    mprotect((char*)pages + page_bytes, 4096, PROT_NONE);
    unsigned char* data = (unsigned char*)pages + page_bytes - aligned;  // ends next to the guard, 256-byte aligned
    std::memset(data, POISON, size);
    std::memset(data + size, CANARY, aligned - size);
    memory().all[(uintptr_t)data] = {data, size, (unsigned char*)pages, page_bytes, kind, false};
    return data;
}

inline void check_canary(const Allocation& a) {
    const size_t aligned = (a.size + 255) / 256 * 256;
    for (size_t i = a.size; i < aligned; ++i) {
        if (a.data[i] == CANARY) continue;
        fault(std::string(name_of(a.kind)) + " memory of " + std::to_string(a.size) + " bytes was written at byte " +
              std::to_string(i) + " by " + memory().running);
        a.data[i] = CANARY;
        return;
    }
}

inline void check_canaries() {
    for (const auto& [address, a] : memory().all)
        if (!a.freed) check_canary(a);
}

// The live or freed allocation that holds the address; null when none does.
inline Allocation* find(uintptr_t address) {
    auto after = memory().all.upper_bound(address);
    if (after == memory().all.begin()) return nullptr;
    Allocation& a = std::prev(after)->second;
    return address <= (uintptr_t)a.data + a.size ? &a : nullptr;
}

// Whether the range is inside memory that the caller locked.
inline bool locked(uintptr_t address, size_t size) {
    auto after = memory().locked.upper_bound(address);
    if (after == memory().locked.begin()) return false;
    const auto& [begin, bytes] = *std::prev(after);
    return address + size <= begin + bytes;
}

// False, with a report, unless [address, address + size) is live memory of ours.
inline bool check_range(uintptr_t address, size_t size, const char* what) {
    if (locked(address, size)) return true;
    const Allocation* a = find(address);
    std::string wrong;
    if (!a) wrong = "is not device or pinned memory";
    else if (a->freed) wrong = "was freed";
    else if (address + size > (uintptr_t)a->data + a->size)
        wrong = "goes " + std::to_string(address + size - (uintptr_t)a->data - a->size) + " bytes past the end of " +
                std::to_string(a->size);
    if (wrong.empty()) return true;
    fault(std::string(what) + " of " + std::to_string(size) + " bytes: the memory " + wrong);
    return false;
}

inline bool release(uintptr_t address, Kind kind) {
    auto found = memory().all.find(address);
    if (found == memory().all.end() || found->second.kind != kind) {
        fault("freeing an address that was never allocated as " + std::string(name_of(kind)) + " memory");
        return false;
    }
    Allocation& a = found->second;
    if (a.freed) {
        fault("freeing memory of " + std::to_string(a.size) + " bytes twice");
        return false;
    }
    check_canary(a);
    a.freed = true;
    mprotect(a.pages, a.page_bytes, PROT_NONE);
    return true;
}

}  // namespace standin
