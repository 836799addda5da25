// A cooperative thread of execution: one GPU thread runs on one fiber.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#ifndef __x86_64__
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kFiberStackBytes = 256 * 1024;  // red zones make frames several times as large

// AddressSanitizer keeps the bounds of the stack that runs: told of no switch, it takes what a fiber throws, or a
// fiber's own variables, for accesses beside that stack.
class SanitizedStacks {
  protected:
    void allocated(void* stack) {
        own_bottom_ = stack;
        __asan_unpoison_memory_region(stack, kFiberStackBytes);  // frames that an error left without unwinding them
    }
    void leave_scheduler() { __sanitizer_start_switch_fiber(&scheduler_frames_, own_bottom_, kFiberStackBytes); }
    void back_in_scheduler() { __sanitizer_finish_switch_fiber(scheduler_frames_, nullptr, nullptr); }
    void leave_fiber() { __sanitizer_start_switch_fiber(&own_frames_, scheduler_bottom_, scheduler_bytes_); }
    void back_in_fiber() { __sanitizer_finish_switch_fiber(own_frames_, &scheduler_bottom_, &scheduler_bytes_); }

  private:
    void* own_bottom_ = nullptr;
    void* own_frames_ = nullptr;
    void* scheduler_frames_ = nullptr;
    const void* scheduler_bottom_ = nullptr;
    size_t scheduler_bytes_ = 0;
};
#else
constexpr size_t kFiberStackBytes = 64 * 1024;

class SanitizedStacks {
  protected:
    void allocated(void*) {}
    void leave_scheduler() {}
    void back_in_scheduler() {}
    void leave_fiber() {}
    void back_in_fiber() {}
};
#endif

#ifdef __x86_64__

// Saves the callee-saved registers on the running stack and resumes another stack (System V x86-64).
__attribute__((naked, noinline)) inline void switch_stack(void** /*save*/, void* /*load*/) {
    asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15;"
        "mov %rsp, (%rdi); mov %rsi, %rsp;"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
}

class Fiber : SanitizedStacks {
  public:
    // Makes the next resume() enter `entry`, which must call entered() first and must never return.
    void prepare(void (*entry)()) {
        if (!stack_) stack_.reset(new std::byte[kFiberStackBytes]);
        allocated(stack_.get());
        auto top = reinterpret_cast<uintptr_t>(stack_.get() + kFiberStackBytes) & ~uintptr_t{15};
        auto* frame = reinterpret_cast<void**>(top);
        *--frame = nullptr;  // return address of `entry`: keeps the ABI's stack alignment
        *--frame = reinterpret_cast<void*>(entry);
        for (int callee_saved = 0; callee_saved < 6; ++callee_saved) *--frame = nullptr;
        own_ = frame;
    }
    void entered() { back_in_fiber(); }
    void resume() {
        leave_scheduler();
        switch_stack(&scheduler_, own_);
        back_in_scheduler();
    }
    void suspend() {
        leave_fiber();
        switch_stack(&own_, scheduler_);
        back_in_fiber();
    }

  private:
    std::unique_ptr<std::byte[]> stack_;
    void* own_ = nullptr;
    void* scheduler_ = nullptr;
};

#else

// The same by the C library, which saves the signal mask too at a system call a switch.
class Fiber : SanitizedStacks {
  public:
    void prepare(void (*entry)()) {
        if (!stack_) stack_.reset(new std::byte[kFiberStackBytes]);
        allocated(stack_.get());
        getcontext(&own_);
        own_.uc_stack.ss_sp = stack_.get();
        own_.uc_stack.ss_size = kFiberStackBytes;
        own_.uc_link = nullptr;
        makecontext(&own_, entry, 0);
    }
    void entered() { back_in_fiber(); }
    void resume() {
        leave_scheduler();
        swapcontext(&scheduler_, &own_);
        back_in_scheduler();
    }
    void suspend() {
        leave_fiber();
        swapcontext(&own_, &scheduler_);
        back_in_fiber();
    }

  private:
    std::unique_ptr<std::byte[]> stack_;
    ucontext_t own_ = {}, scheduler_ = {};
};

#endif

}  // namespace emu
