// The barriers of one CTA under emulation.
#pragma once
#include <algorithm>
#include <functional>
#include <map>

#include "emulation/scheduler.hpp"

namespace emu {

class Barriers : public Scheduler {
  public:
    using Scheduler::Scheduler;

    void named_barrier(int id, int threads, bool wait) {
        if (id < 0 || id > 15) fail("named barrier %d does not exist", id);
        if (threads % 32) fail("named barrier %d: %d threads is not a multiple of 32", id, threads);
        NamedBarrier& barrier = named_barriers_[id];
        if (barrier.arrived == 0) barrier.expected = threads;
        if (barrier.expected != threads)
            fail("named barrier %d: %d threads expected, %d given", id, barrier.expected, threads);
        meet(barrier, wait, {"named barrier", uint32_t(id), uint32_t(threads)});
    }

    void mbarrier_init_fence() {
        for (auto& [address, barrier] : mbarriers_)
            if (barrier.initializer_thread == current_->index) barrier.fenced = true;
    }

    void mbarrier_arrive(uint32_t address, int64_t expect_bytes) {
        Mbarrier& barrier = find_mbarrier(address, agent());
        release(barrier.clock);
        barrier.tx_bytes += expect_bytes;
        count_arrival(barrier, address);
    }

    void mbarrier_wait(uint32_t address, uint32_t parity) {
        Mbarrier& barrier = find_mbarrier(address, agent());
        block_until([&] { return (barrier.phase & 1) != parity; }, {"mbarrier", address, parity});
        acquire(barrier.completed);
    }

    // ---- the grid before this one ----

    void wait_for_previous_grid() { current_->waited_for_previous_grid = true; }

    void global_access(const char* what) const {
        if (shape_.dependent && !current_->waited_for_previous_grid)
            fail("%s before wait_for_previous_grid: the grid before may still use that memory", what);
    }

    // Compilers may move a read-only load ahead of the wait.
    void read_only_access() const {
        if (shape_.dependent) fail("read-only load in a kernel that was launched as a dependent one");
    }

    // A grid that ends before the one before it would let the one behind it run too early.
    void check_waited() const {
        auto waited = [](const Thread& thread) { return thread.waited_for_previous_grid; };
        if (shape_.dependent && std::none_of(threads_.begin(), threads_.end(), waited))
            fail("block %d never calls wait_for_previous_grid, and was launched as a dependent one", block());
    }

    std::string waits() const { return describe_waits(threads_, mbarriers_, named_barriers_); }

  protected:
    void meet(NamedBarrier& barrier, bool wait, WaitReason reason) {
        uint32_t generation = barrier.generation;
        release(barrier.clock);
        if (++barrier.arrived == barrier.expected) {
            barrier.arrived = 0;
            barrier.completed = barrier.clock;
            ++barrier.generation;
            ++progress_;
        }
        if (!wait) return;
        block_until([&] { return barrier.generation != generation; }, reason);
        acquire(barrier.completed);
    }

    void start_mbarrier(uint32_t address, int count) {
        Mbarrier barrier;
        barrier.count = barrier.pending = count;
        barrier.initializer = current_->warp();
        barrier.initializer_thread = current_->index;
        barrier.initialized = agent().seen[current_->warp()];
        mbarriers_[address] = barrier;
    }

    // The mbarrier at this address, which `by` must know to be initialised.
    Mbarrier& find_mbarrier(uint32_t address, Agent by) {
        auto found = mbarriers_.find(address);
        if (found == mbarriers_.end()) fail("mbarrier 0x%x was never initialised", address);
        const Mbarrier& barrier = found->second;
        if (by.warp != barrier.initializer && by.seen[barrier.initializer] < barrier.initialized)
            fail("race: mbarrier 0x%x is used before a barrier ordered this after its initialisation", address);
        return found->second;
    }

    void count_arrival(Mbarrier& barrier, uint32_t address) {
        if (barrier.pending == 0) fail("mbarrier 0x%x: more than %d arrivals in one phase", address, barrier.count);
        --barrier.pending;
        maybe_flip(barrier);
    }

    // Bytes that an asynchronous engine has written, as of its `epoch`.
    void count_bytes(uint32_t address, uint32_t bytes, uint32_t epoch) {
        Mbarrier& barrier = mbarriers_.at(address);
        barrier.clock[rank()][kTma] = epoch;
        barrier.tx_bytes -= bytes;
        maybe_flip(barrier);
    }

  private:
    void maybe_flip(Mbarrier& barrier) {
        if (barrier.pending > 0 || barrier.tx_bytes != 0) return;
        ++barrier.phase;
        barrier.pending = barrier.count;
        barrier.completed = barrier.clock;
        ++progress_;
    }

    std::map<uint32_t, Mbarrier> mbarriers_;
    std::array<NamedBarrier, 16> named_barriers_;
};

}  // namespace emu
