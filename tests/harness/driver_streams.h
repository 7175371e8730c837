// The stand-in driver: streams and events.
#pragma once
#include "driver_state.h"

extern "C" {

int cuStreamCreateWithPriority(void** handle, unsigned flags, int) {
    NEEDS_CONTEXT;
    auto* stream = new Stream;
    stream->blocking = !(flags & 1);
    device().streams.insert(stream);
    return *handle = stream, SUCCESS;
}
int cuStreamCreate(void** handle, unsigned flags) { return cuStreamCreateWithPriority(handle, flags, 0); }
int cuStreamDestroy_v2(void* handle) {
    NEEDS_CONTEXT;
    if (!device().streams.count((Stream*)handle)) return INVALID_HANDLE;
    run_all(*(Stream*)handle);
    for (Event* event : device().events)
        if (event->stream == handle) event->stream = nullptr;
    device().streams.erase((Stream*)handle);
    delete (Stream*)handle;
    return SUCCESS;
}
int cuStreamSynchronize(void* handle) {
    NEEDS_CONTEXT;
    STREAM(stream, handle);
    if (stream->capture) return stream->capture->invalid = true, CAPTURE_UNSUPPORTED;
    ++device().counters.waits;
    run_all(*stream);
    return SUCCESS;
}
int cuStreamQuery(void* handle) {  // not ready when asked first; done by the next time
    NEEDS_CONTEXT;
    STREAM(stream, handle);
    if (stream->capture) return stream->capture->invalid = true, CAPTURE_UNSUPPORTED;
    const bool ready = stream->queue.empty();
    run_all(*stream);
    return ready ? SUCCESS : NOT_READY;
}
int cuStreamGetCtx(void*, void** context) { return cuCtxGetCurrent(context); }
int cuStreamGetFlags(void* handle, unsigned* flags) {
    LOCK;
    STREAM(stream, handle);
    return *flags = !stream->blocking && stream != &device().legacy, SUCCESS;
}
int cuStreamGetPriority(void*, int* priority) { return *priority = 0, SUCCESS; }
int cuStreamWaitEvent(void* handle, void* event, unsigned) {
    NEEDS_CONTEXT;
    STREAM(stream, handle);
    return device().events.count((Event*)event) ? wait(*stream, *(Event*)event) : INVALID_HANDLE;
}
int cuLaunchHostFunc(void* handle, void (*call)(void*), void* data) {
    NEEDS_CONTEXT;
    STREAM(stream, handle);
    return enqueue(*stream, "host function", [=] { call(data); });
}
int cuEventCreate(void** handle, unsigned flags) {
    NEEDS_CONTEXT;
    auto* event = new Event;
    event->timing = !(flags & 2);
    event->sleeps = flags & 1;
    device().events.insert(event);
    return *handle = event, SUCCESS;
}
int cuEventDestroy_v2(void* handle) {
    NEEDS_CONTEXT;
    if (!device().events.count((Event*)handle)) return INVALID_HANDLE;
    run_device();  // a queued record still points here
    device().events.erase((Event*)handle);
    delete (Event*)handle;
    return SUCCESS;
}
int cuEventRecord(void* event, void* handle) {
    NEEDS_CONTEXT;
    STREAM(stream, handle);
    return device().events.count((Event*)event) ? record(*(Event*)event, *stream) : INVALID_HANDLE;
}
int cuEventSynchronize(void* handle) {
    NEEDS_CONTEXT;
    if (!device().events.count((Event*)handle)) return INVALID_HANDLE;
    Event& event = *(Event*)handle;
    if (event.capture && event.capture->graph && event.stream && event.stream->capture) return CAPTURE_UNSUPPORTED;
    ++device().counters.waits;
    if (event.stream) run_to(*event.stream, event.position);
    return SUCCESS;
}
int cuEventQuery(void* handle) {
    NEEDS_CONTEXT;
    if (!device().events.count((Event*)handle)) return INVALID_HANDLE;
    Event& event = *(Event*)handle;
    const bool ready = !event.stream || event.stream->done >= event.position;
    if (event.stream) run_to(*event.stream, event.position);
    return ready ? SUCCESS : NOT_READY;
}
int cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
    LOCK;
    const Event &a = *(Event*)from, &b = *(Event*)to;
    if (!device().events.count((Event*)from) || !device().events.count((Event*)to)) return INVALID_HANDLE;
    if (!a.timing || !b.timing) return INVALID_HANDLE;
    if (!a.recorded || !b.recorded) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(b.time - a.time).count();
    return SUCCESS;
}
int cuEventElapsedTime(float* milliseconds, void* from, void* to) { return cuEventElapsedTime_v2(milliseconds, from, to); }

}  // extern "C"
