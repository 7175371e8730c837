// One OS thread, many stacks: switching between them, in assembly on x86-64 and by ucontext elsewhere.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define HARNESS_ASAN 1
#else
#define HARNESS_ASAN 0
#endif
#if defined(__x86_64__) && !defined(HARNESS_UCONTEXT)
#define HARNESS_ASSEMBLY 1
#else
#define HARNESS_ASSEMBLY 0
#include <ucontext.h>
#endif

namespace harness {

#if HARNESS_ASSEMBLY
// Save the registers that a call preserves and the stack pointer, then take the other side's.
extern "C" void harness_switch(void** save, void* to);
asm(R"(
.text
.globl harness_switch
.type harness_switch, @function
harness_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size harness_switch, . - harness_switch
)");
struct Context {
    void* stack_pointer = nullptr;
};
inline void switch_stack(Context& from, Context& to) { harness_switch(&from.stack_pointer, to.stack_pointer); }
inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
    void** top = (void**)(stack + size);
    *--top = nullptr;        // the entry finds the stack as after a call
    *--top = (void*)entry;   // popped by ret
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context.stack_pointer = top;
}
#else
struct Context {
    ucontext_t context;
};
inline void switch_stack(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
    getcontext(&context.context);
    context.context.uc_stack.ss_sp = stack;
    context.context.uc_stack.ss_size = size;
    context.context.uc_link = nullptr;
    makecontext(&context.context, entry, 0);
}
#endif

}  // namespace harness
