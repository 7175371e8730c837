// Streams, events and graphs of the stand-in driver. Work is queued and runs only when somebody waits for it, or asks: a
// result that is read too early is the poison it was allocated with.
#pragma once
#include <chrono>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <thread>

#include "standin_memory.h"

namespace standin {

enum Status {
    SUCCESS = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
    NO_BINARY = 209, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, OUT_OF_RESOURCES = 701,
    CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_UNMATCHED = 903, CAPTURE_UNJOINED = 904,
    CAPTURE_WRONG_THREAD = 908,
};

enum CaptureMode { MODE_GLOBAL = 0, MODE_THREAD_LOCAL = 1, MODE_RELAXED = 2 };

struct Operation {
    std::string name;
    std::function<void()> run;
};

struct Graph {
    std::vector<Operation> operations;
};

struct GraphExec {
    std::vector<Operation> operations;
};

struct Stream;

struct Capture {
    Graph* graph;
    CaptureMode mode;
    std::thread::id thread;
    Stream* origin;
    bool invalid = false;
};

struct Stream {
    bool blocking = false;  // with the legacy stream
    std::deque<Operation> queue;
    size_t queued = 0, done = 0;
    std::shared_ptr<Capture> capture;
    bool joined = true;  // captured work on it has been waited for by the capture's origin
};

struct Event {
    bool timing = true;
    bool sleeps = false;  // those who wait for it
    Stream* stream = nullptr;
    size_t position = 0;  // in the stream
    std::shared_ptr<Capture> capture;
    std::chrono::steady_clock::time_point time;
    bool recorded = false;
};

struct Counters {
    uint64_t launches = 0, graph_launches = 0, copies = 0, waits = 0, allocations = 0;
};

struct Device {
    std::recursive_mutex mutex;
    std::set<Stream*> streams;
    std::set<Event*> events;
    std::set<Graph*> graphs;
    std::set<GraphExec*> execs;
    Stream legacy;
    std::vector<std::shared_ptr<Capture>> captures;
    Counters counters;
};

inline Device& device() {
    static Device* const instance = new Device;
    return *instance;
}

inline void execute(Operation& operation) {
    memory().running = operation.name.c_str();
    operation.run();
    check_canaries();
    memory().running = "";
}

inline void run_to(Stream& stream, size_t position) {
    while (stream.done < position && !stream.queue.empty()) {
        Operation operation = std::move(stream.queue.front());
        stream.queue.pop_front();
        ++stream.done;
        execute(operation);
    }
}

inline void run_all(Stream& stream) { run_to(stream, stream.queued); }

inline void run_device() {
    for (Stream* stream : device().streams) run_all(*stream);
    run_all(device().legacy);
}

// Handles 0, 1 and 2 are the default streams; they are one here.
inline Stream* stream_of(void* handle) {
    if ((uintptr_t)handle <= 2) return &device().legacy;
    return device().streams.count((Stream*)handle) ? (Stream*)handle : nullptr;
}

inline int enqueue(Stream& stream, std::string name, std::function<void()> run) {
    if (stream.capture) {
        if (stream.capture->invalid) return CAPTURE_INVALIDATED;
        stream.joined = &stream == stream.capture->origin;
        stream.capture->graph->operations.push_back({std::move(name), std::move(run)});
        return SUCCESS;
    }
    if (&stream == &device().legacy)
        for (Stream* other : device().streams)
            if (other->blocking) run_all(*other);
    if (stream.blocking) run_all(device().legacy);
    stream.queue.push_back({std::move(name), std::move(run)});
    ++stream.queued;
    return SUCCESS;
}

// Calls that CUDA forbids during a capture: any, for a capture of mode GLOBAL; the capturing thread's own, for
// THREAD_LOCAL. The capture is lost.
inline int forbidden_in_capture() {
    int status = SUCCESS;
    for (auto& capture : device().captures) {
        const bool mine = capture->thread == std::this_thread::get_id();
        if (capture->mode == MODE_RELAXED || (capture->mode == MODE_THREAD_LOCAL && !mine)) continue;
        capture->invalid = true;
        status = CAPTURE_UNSUPPORTED;
    }
    return status;
}

inline int begin_capture(Stream& stream, CaptureMode mode) {
    if (stream.capture || &stream == &device().legacy) return CAPTURE_UNSUPPORTED;
    Graph* graph = new Graph;
    auto capture = std::make_shared<Capture>(Capture{graph, mode, std::this_thread::get_id(), &stream});
    stream.capture = capture;
    device().captures.push_back(capture);
    return SUCCESS;
}

inline int end_capture(Stream& stream, Graph** graph) {
    *graph = nullptr;
    auto capture = stream.capture;
    if (!capture || capture->origin != &stream) return CAPTURE_UNMATCHED;
    if (capture->mode != MODE_RELAXED && capture->thread != std::this_thread::get_id()) return CAPTURE_WRONG_THREAD;
    bool joined = true;
    for (Stream* other : device().streams) {
        if (other->capture != capture) continue;
        joined = joined && (other == &stream || other->joined);
        other->capture.reset();
        other->joined = true;
    }
    auto& all = device().captures;
    all.erase(std::find(all.begin(), all.end(), capture));
    if (capture->invalid || !joined) {
        delete capture->graph;
        return capture->invalid ? CAPTURE_INVALIDATED : CAPTURE_UNJOINED;
    }
    device().graphs.insert(capture->graph);
    *graph = capture->graph;
    return SUCCESS;
}

inline int record(Event& event, Stream& stream) {
    event.capture = stream.capture;
    event.stream = &stream;
    if (stream.capture) return stream.capture->invalid ? CAPTURE_INVALIDATED : SUCCESS;
    const int status = enqueue(stream, "event", [&event] {
        event.time = std::chrono::steady_clock::now();
        event.recorded = true;
    });
    event.recorded = false;
    event.position = stream.queued;
    return status;
}

inline int wait(Stream& stream, Event& event) {
    if (event.capture) {
        if (stream.capture && stream.capture != event.capture) return CAPTURE_INVALIDATED;
        if (!stream.capture) stream.capture = event.capture;  // the stream joins the capture
        if (&stream == event.capture->origin && event.stream) event.stream->joined = true;
        return SUCCESS;
    }
    if (stream.capture) {
        stream.capture->invalid = true;  // it would depend on work outside the graph
        return CAPTURE_UNSUPPORTED;
    }
    if (!event.stream) return SUCCESS;
    Stream* from = event.stream;
    const size_t position = event.position;
    return enqueue(stream, "wait for an event", [from, position] { run_to(*from, position); });
}

}  // namespace standin
