// The threads of a CTA under emulation as fibers: whose turn it is, who waits, and what happened before what.
#pragma once
#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "emulation/cta_state.hpp"

namespace emu {

class Scheduler {
  public:
    Scheduler(const LaunchShape& shape, int block, const std::function<void()>& kernel)
        : shape_(shape), threads_(shape.threads), clocks_(shape.threads / 32), block_(block), kernel_(kernel) {
        if (shape.threads > kMaxWarps * 32) fail("%d threads exceed the emulator's %d warps", shape.threads, kMaxWarps);
        warp_order_.resize(shape.threads / 32);
        std::iota(warp_order_.begin(), warp_order_.end(), 0);
        random_.seed(shape.schedule_seed + 977 * block);
        for (int warp = 0; warp < shape.threads / 32; ++warp) clocks_[warp][rank()][warp] = 1;
        for (int i = 0; i < shape.threads; ++i) threads_[i].index = i;
    }
    virtual ~Scheduler() = default;

    void start() {
        for (Thread& thread : threads_) thread.fiber.prepare(&Scheduler::enter_thread);
        alive_ = shape_.threads;
    }

    // Runs each warp until it waits.
    void turn() {
        running = this;
        for (int warp : next_warp_order())
            for (int lane = 0; lane < 32; ++lane) step(threads_[warp * 32 + lane]);
    }

    bool finished() const { return alive_ == 0; }
    uint64_t progress() const { return progress_; }  // grows with whatever happens

    Thread& thread() { return *current_; }
    Agent agent() { return agent_of(current_->warp()); }
    int block() const { return block_; }
    int rank() const { return block_ % shape_.cluster; }  // in the cluster
    const LaunchShape& shape() const { return shape_; }

  protected:
    virtual void check_exit() const = 0;  // fails where the running thread must not end yet

    static thread_local Scheduler* running;

    template <class Ready>
    void block_until(Ready ready, WaitReason reason) {
        while (!ready()) {
            current_->waits_for = reason;
            current_->fiber.suspend();
        }
        ++progress_;
    }

    bool randomized() const { return shape_.schedule_seed != 0; }
    int random_below(int bound) { return std::uniform_int_distribution(0, bound - 1)(random_); }
    template <class Items>
    void shuffle(Items& items) {
        std::shuffle(items.begin(), items.end(), random_);
    }

    // What the running thread's warp did so far happened before what follows an acquire of `into`.
    void release(Clock& into) {
        int warp = current_->warp();
        into.join(clocks_[warp]);
        ++clocks_[warp][rank()][warp];
    }
    void acquire(const Clock& from) { clocks_[current_->warp()].join(from); }

    Agent agent_of(int warp) { return {warp, current_->index, clocks_[warp][rank()]}; }
    // The running thread, as an intruder in a CTA of its cluster.
    Agent agent_in(int rank) { return {kAnotherCta, kAnotherCta, clocks_[current_->warp()][rank]}; }

    LaunchShape shape_;
    std::vector<Thread> threads_;
    std::vector<Clock> clocks_;  // one per warp
    Thread* current_ = nullptr;
    uint64_t progress_ = 0;

  private:
    static void enter_thread() {
        Scheduler& self = *running;
        self.current_->fiber.entered();
        try {
            self.kernel_();
            self.check_exit();
        } catch (const std::exception& error) {
            self.error_ = error.what();
        }
        self.current_->done = true;
        --self.alive_;
        ++self.progress_;
        self.current_->fiber.suspend();
    }

    void step(Thread& thread) {
        if (thread.done) return;
        current_ = &thread;
        thread.fiber.resume();
        if (error_.empty()) return;
        fail("block %d, warp %d, thread %d: %s", block_, thread.warp(), thread.index, error_.c_str());
    }

    const std::vector<int>& next_warp_order() {
        if (randomized()) std::shuffle(warp_order_.begin(), warp_order_.end(), random_);
        return warp_order_;
    }

    int block_;
    const std::function<void()>& kernel_;
    std::mt19937 random_;
    std::vector<int> warp_order_;
    std::string error_;
    int alive_ = 0;
};

inline thread_local Scheduler* Scheduler::running = nullptr;

}  // namespace emu
