// Threads of a CUDA grid as fibers of one OS thread: who runs next is drawn by a seed, and every rendez-vous (barrier,
// shuffle, vote) is checked for what CUDA leaves undefined: threads that never arrive, or arrive at another place.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "stacks.h"

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace harness {

[[noreturn]] inline void fail(const std::string& what) {
    std::fprintf(stderr, "HARNESS: %s\n", what.c_str());
    std::fflush(stderr);
    std::abort();
}

// splitmix64
struct Random {
    uint64_t state;
    uint64_t next() {
        uint64_t z = (state += 0x9e3779b97f4a7c15ull);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    unsigned below(unsigned n) { return (unsigned)(next() % n); }
};

// ---- threads and blocks -----------------------------------------------------------------------------------------

enum class State { ready, barrier, warp, done };
const char* const STATE_NAMES[] = {"ready", "at a barrier", "at a warp operation", "finished"};
const size_t STACK_BYTES = 128 * 1024;

struct Block;

struct Fiber {
    Context context;
    char* stack = nullptr;
    void* fake_stack = nullptr;
    State state = State::done;
    Block* block = nullptr;
    unsigned index = 0;  // in the block
    dim3 thread;
    int line = 0;        // the place of the rendez-vous
    uint32_t mask = 0;   // warp operations: who must come
    int operation = 0;
    int argument = 0;
    uint64_t value = 0;
};

struct Block {
    dim3 index;
    std::vector<Fiber*> fibers;
    std::unique_ptr<unsigned char[]> shared;  // exactly as large as the launch asked: ASan sees a step past its end
    unsigned waiting = 0, finished = 0;
};

struct Launch {
    dim3 grid, block;
    unsigned shared_bytes = 0;
    uint64_t seed = 0;
    unsigned resident = 1;      // blocks in flight together
    unsigned abort_after = ~0u; // stop the launch when so many blocks have finished
    unsigned sleep_at = ~0u;    // hold one thread back after this barrier of the launch; else after any, by the seed
};

struct Machine {
    Random random{0};
    Context scheduler;
    const void* scheduler_bottom = nullptr;
    size_t scheduler_size = 0;
    void* scheduler_fake = nullptr;
    Fiber* current = nullptr;
    Launch launch;
    void (*call)(const void*) = nullptr;
    const void* params = nullptr;
    unsigned barriers = 0;     // passed in this launch, by any block
    Fiber* sleeper = nullptr;  // runs only when no other thread of any block can
    std::vector<std::unique_ptr<Fiber>> pool;
    std::vector<Fiber*> idle;
};

inline Machine& machine() {
    static Machine* const instance = new Machine;  // never destroyed: stacks live as long as the process
    return *instance;
}

inline void to_scheduler() {
    Machine& m = machine();
    Fiber* self = m.current;
#if HARNESS_ASAN
    __sanitizer_start_switch_fiber(&self->fake_stack, m.scheduler_bottom, m.scheduler_size);
#endif
    switch_stack(self->context, m.scheduler);
#if HARNESS_ASAN
    __sanitizer_finish_switch_fiber(self->fake_stack, &m.scheduler_bottom, &m.scheduler_size);
#endif
}

inline void fiber_main() {
#if HARNESS_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &machine().scheduler_bottom, &machine().scheduler_size);
#endif
    for (;;) {
        machine().call(machine().params);
        machine().current->state = State::done;
        to_scheduler();
    }
}

inline void resume(Fiber* fiber) {
    Machine& m = machine();
    m.current = fiber;
#if HARNESS_ASAN
    __sanitizer_start_switch_fiber(&m.scheduler_fake, fiber->stack, STACK_BYTES);
#endif
    switch_stack(m.scheduler, fiber->context);
#if HARNESS_ASAN
    __sanitizer_finish_switch_fiber(m.scheduler_fake, nullptr, nullptr);
#endif
    m.current = nullptr;
}

inline Fiber* take_fiber() {
    Machine& m = machine();
    if (m.idle.empty()) {
        m.pool.push_back(std::make_unique<Fiber>());
        Fiber* fiber = m.pool.back().get();
        const size_t page = 4096;
        char* memory = (char*)mmap(nullptr, STACK_BYTES + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) fail("no memory for a fiber's stack");
        mprotect(memory, page, PROT_NONE);
        fiber->stack = memory + page;
        prepare(fiber->context, fiber->stack, STACK_BYTES, fiber_main);
        return fiber;
    }
    Fiber* fiber = m.idle.back();
    m.idle.pop_back();
    return fiber;
}

inline std::string where(const Fiber* fiber) {
    return "block (" + std::to_string(fiber->block->index.x) + "," + std::to_string(fiber->block->index.y) + "," +
           std::to_string(fiber->block->index.z) + ") thread " + std::to_string(fiber->index) + " " +
           STATE_NAMES[(int)fiber->state] + ", line " + std::to_string(fiber->line);
}

// Let others run, at a place where the hardware may do so too.
inline void maybe_yield() {
    if (machine().random.below(8) == 0) to_scheduler();
}

// After a barrier, now and then, one thread falls asleep: all others run as far ahead of it as the barriers let them. One
// at a time, or the others would be held up as well.
inline void send_to_sleep(Block& block) {
    Machine& m = machine();
    const bool now = m.launch.sleep_at == ~0u ? m.random.below(64) == 0 : m.barriers == m.launch.sleep_at;
    ++m.barriers;
    if (now && !m.sleeper) m.sleeper = block.fibers[m.random.below((unsigned)block.fibers.size())];
}

// ---- rendez-vous ------------------------------------------------------------------------------------------------

inline uint64_t barrier(int line, uint64_t value) {
    Fiber* self = machine().current;
    Block& block = *self->block;
    self->line = line;
    self->value = value;
    self->state = State::barrier;
    if (block.finished) fail("a barrier that a finished thread will never reach: " + where(self));
    if (++block.waiting == block.fibers.size()) {
        uint64_t any = 0;
        for (Fiber* fiber : block.fibers) {
            if (fiber->line != line) fail("threads of a block at different barriers: " + where(self) + " and " + where(fiber));
            any |= fiber->value;
        }
        for (Fiber* fiber : block.fibers) {
            fiber->value = any;
            fiber->state = State::ready;
        }
        block.waiting = 0;
        send_to_sleep(block);
    }
    to_scheduler();
    return self->value;
}

enum Operation { SYNC = 1, SHUFFLE = 2, SHUFFLE_UP = 3, SHUFFLE_DOWN = 4, SHUFFLE_XOR = 5, BALLOT = 6 };

inline unsigned source_lane(const Fiber* fiber, int lane) {
    int source = lane;
    if (fiber->operation == SHUFFLE) source = fiber->argument & 31;
    if (fiber->operation == SHUFFLE_UP) source = lane - fiber->argument;
    if (fiber->operation == SHUFFLE_DOWN) source = lane + fiber->argument;
    if (fiber->operation == SHUFFLE_XOR) source = lane ^ fiber->argument;
    return (unsigned)(source < 0 || source > 31 ? lane : source);
}

inline uint64_t warp(Operation operation, uint32_t mask, uint64_t value, int argument, int line) {
    Fiber* self = machine().current;
    Block& block = *self->block;
    const unsigned lane = self->index % 32, first = self->index - lane;
    if (!(mask >> lane & 1)) fail("a warp operation whose mask leaves its own lane out: " + where(self));
    self->line = line;
    self->mask = mask;
    self->operation = operation;
    self->argument = argument;
    self->value = value;
    self->state = State::warp;
    bool complete = true;
    for (unsigned i = 0; i < 32; ++i) {
        if (!(mask >> i & 1)) continue;
        if (first + i >= block.fibers.size()) fail("a warp operation names a lane that does not exist: " + where(self));
        const Fiber* other = block.fibers[first + i];
        if (other->state == State::done) fail("a warp operation waits for a finished lane: " + where(self));
        if (other->state != State::warp) {
            complete = false;
        } else if (other->mask != mask || other->operation != operation || other->line != line) {
            fail("lanes of a warp at different operations: " + where(self) + " and " + where(other));
        }
    }
    if (complete) {
        uint64_t values[32] = {}, ballot = 0;
        for (unsigned i = 0; i < 32; ++i) {
            if (!(mask >> i & 1)) continue;
            values[i] = block.fibers[first + i]->value;
            if (values[i]) ballot |= 1ull << i;
        }
        for (unsigned i = 0; i < 32; ++i) {
            if (!(mask >> i & 1)) continue;
            Fiber* fiber = block.fibers[first + i];
            const unsigned source = source_lane(fiber, (int)i);
            if (operation != BALLOT && operation != SYNC && !(mask >> source & 1))
                fail("a shuffle from a lane outside the mask: " + where(fiber));
            fiber->value = operation == BALLOT ? ballot : values[source];
            fiber->state = State::ready;
        }
    }
    to_scheduler();
    return self->value;
}

}  // namespace harness
