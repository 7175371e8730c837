// Running a grid: blocks and threads in an order drawn by the seed, several blocks in flight together.
#pragma once
#include "fibers.h"

namespace harness {

inline std::unique_ptr<Block> start_block(unsigned number) {
    Machine& m = machine();
    auto block = std::make_unique<Block>();
    const dim3 grid = m.launch.grid, size = m.launch.block;
    block->index = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
    block->shared.reset(new unsigned char[m.launch.shared_bytes]);
    const unsigned char poison[] = {0xa5, 0xff, 0x7f, 0x00};
    std::memset(block->shared.get(), poison[m.random.below(4)], m.launch.shared_bytes);
    for (unsigned i = 0; i < size.x * size.y * size.z; ++i) {
        Fiber* fiber = take_fiber();
        fiber->block = block.get();
        fiber->index = i;
        fiber->thread = {i % size.x, i / size.x % size.y, i / size.x / size.y};
        fiber->state = State::ready;
        block->fibers.push_back(fiber);
    }
    send_to_sleep(*block);
    return block;
}

template <typename T>
void shuffle(std::vector<T>& items) {
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[machine().random.below((unsigned)i)]);
}

// One turn: every thread that is awake and can run does so, up to its next rendez-vous. False when none could.
inline bool turn(std::vector<std::unique_ptr<Block>>& blocks) {
    std::vector<Fiber*> ready;
    Fiber*& sleeper = machine().sleeper;
    for (auto& block : blocks)
        for (Fiber* fiber : block->fibers)
            if (fiber->state == State::ready && fiber != sleeper) ready.push_back(fiber);
    if (ready.empty() && sleeper) {
        if (sleeper->state == State::ready) ready.push_back(sleeper);
        sleeper = nullptr;
    }
    shuffle(ready);
    for (Fiber* fiber : ready) {
        resume(fiber);
        if (fiber->state == State::done) {
            ++fiber->block->finished;
            if (fiber->block->waiting) fail("a thread finished while others wait at a barrier: " + where(fiber));
        }
    }
    return !ready.empty();
}

inline void run(const Launch& launch, void (*call)(const void*), const void* params) {
    Machine& m = machine();
    m.launch = launch;
    m.random.state = launch.seed;
    m.sleeper = nullptr;
    m.barriers = 0;
    m.call = call;
    m.params = params;
    std::vector<unsigned> order(launch.grid.x * launch.grid.y * launch.grid.z);
    for (size_t i = 0; i < order.size(); ++i) order[i] = (unsigned)i;
    shuffle(order);
    std::vector<std::unique_ptr<Block>> blocks;
    size_t next = 0;
    unsigned finished = 0;
    while (next < order.size() || !blocks.empty()) {
        while (blocks.size() < launch.resident && next < order.size()) blocks.push_back(start_block(order[next++]));
        if (!turn(blocks)) fail("deadlock: " + where(blocks[0]->fibers[0]));
        for (size_t i = 0; i < blocks.size();) {
            if (blocks[i]->finished != blocks[i]->fibers.size()) {
                ++i;
                continue;
            }
            for (Fiber* fiber : blocks[i]->fibers) m.idle.push_back(fiber);
            blocks.erase(blocks.begin() + (long)i);
            // An aborted launch: the blocks in flight are finished, the others never start.
            if (++finished == launch.abort_after) next = order.size();
        }
    }
}

}  // namespace harness
