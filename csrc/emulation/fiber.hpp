// A cooperative thread of execution: one GPU thread runs on one fiber.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emu {

constexpr size_t kFiberStackBytes = 64 * 1024;

#ifdef __x86_64__

// Saves the callee-saved registers on the running stack and resumes another stack (System V x86-64).
__attribute__((naked, noinline)) inline void switch_stack(void** /*save*/, void* /*load*/) {
    asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15;"
        "mov %rsp, (%rdi); mov %rsi, %rsp;"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
}

class Fiber {
  public:
    // Makes the next resume() enter `entry`, which must never return.
    void prepare(void (*entry)()) {
        if (!stack_) stack_.reset(new std::byte[kFiberStackBytes]);
        auto top = reinterpret_cast<uintptr_t>(stack_.get() + kFiberStackBytes) & ~uintptr_t{15};
        auto* frame = reinterpret_cast<void**>(top);
        *--frame = nullptr;  // return address of `entry`: keeps the ABI's stack alignment
        *--frame = reinterpret_cast<void*>(entry);
        for (int callee_saved = 0; callee_saved < 6; ++callee_saved) *--frame = nullptr;
        own_ = frame;
    }
    void resume() { switch_stack(&scheduler_, own_); }
    void suspend() { switch_stack(&own_, scheduler_); }

  private:
    std::unique_ptr<std::byte[]> stack_;
    void* own_ = nullptr;
    void* scheduler_ = nullptr;
};

#else

// The same by the C library, which saves the signal mask too at a system call a switch.
class Fiber {
  public:
    void prepare(void (*entry)()) {
        if (!stack_) stack_.reset(new std::byte[kFiberStackBytes]);
        getcontext(&own_);
        own_.uc_stack.ss_sp = stack_.get();
        own_.uc_stack.ss_size = kFiberStackBytes;
        own_.uc_link = nullptr;
        makecontext(&own_, entry, 0);
    }
    void resume() { swapcontext(&scheduler_, &own_); }
    void suspend() { swapcontext(&own_, &scheduler_); }

  private:
    std::unique_ptr<std::byte[]> stack_;
    ucontext_t own_ = {}, scheduler_ = {};
};

#endif

}  // namespace emu
