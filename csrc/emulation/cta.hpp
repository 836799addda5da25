// One CTA under emulation: its barriers, its shared memory and its asynchronous engines, over its scheduler.
#pragma once
#include <functional>
#include <numeric>

#include "emulation/scheduler.hpp"
#include "emulation/shared_memory.hpp"
#include "emulation/tensor_map.hpp"
#include "emulation/wgmma.hpp"

namespace emu {

class Cta : public Scheduler {
  public:
    Cta(const LaunchShape& shape, int block, const std::function<void()>& kernel) : Scheduler(shape, block, kernel) {
        shared_.reset(shape.shared_bytes);
        exchanges_.resize(shape.threads / 32);
        warpgroups_.resize(shape.threads / 128);
        budgets_.assign(shape.threads / 128, kRegisterFile / shape.threads / 8 * 8);
        register_pool_ = std::accumulate(budgets_.begin(), budgets_.end(), 0);
    }

    // The CTA that this operating-system thread runs.
    static Cta& running() { return static_cast<Cta&>(*Scheduler::running); }

    SharedMemory& shared() { return shared_; }
    SharedMemory::Agent agent() { return {current_->warp(), current_->index, clocks_[current_->warp()]}; }

    // ---- barriers ----

    void named_barrier(int id, int threads, bool wait) {
        if (id < 0 || id > 15) fail("named barrier %d does not exist", id);
        if (threads % 32) fail("named barrier %d: %d threads is not a multiple of 32", id, threads);
        NamedBarrier& barrier = named_barriers_[id];
        if (barrier.arrived == 0) barrier.expected = threads;
        if (barrier.expected != threads)
            fail("named barrier %d: %d threads expected, %d given", id, barrier.expected, threads);
        uint32_t generation = barrier.generation;
        release(barrier.clock);
        if (++barrier.arrived == barrier.expected) {
            barrier.arrived = 0;
            ++barrier.generation;
            ++progress_;
        }
        if (!wait) return;
        block_until([&] { return barrier.generation != generation; },
                    {"named barrier", uint32_t(id), uint32_t(threads)});
        acquire(barrier.clock);
    }

    void mbarrier_init(uint32_t address, int count) {
        shared_.check_bounds(address, 8, 8, "mbarrier.init");
        Mbarrier barrier;
        barrier.count = barrier.pending = count;
        barrier.initializer = current_->warp();
        barrier.initializer_thread = current_->index;
        barrier.initialized = clocks_[current_->warp()].seen[current_->warp()];
        mbarriers_[address] = barrier;
    }

    void mbarrier_init_fence() {
        for (auto& [address, barrier] : mbarriers_)
            if (barrier.initializer_thread == current_->index) barrier.fenced = true;
    }

    void mbarrier_arrive(uint32_t address, int64_t expect_bytes) {
        Mbarrier& barrier = find_mbarrier(address);
        release(barrier.clock);
        barrier.tx_bytes += expect_bytes;
        if (barrier.pending == 0) fail("mbarrier 0x%x: more than %d arrivals in one phase", address, barrier.count);
        --barrier.pending;
        maybe_flip(barrier);
    }

    void mbarrier_wait(uint32_t address, uint32_t parity) {
        Mbarrier& barrier = find_mbarrier(address);
        block_until([&] { return (barrier.phase & 1) != parity; }, {"mbarrier", address, parity});
        acquire(barrier.clock);
    }

    // ---- collectives of one warp ----

    // All 32 lanes contribute words and see everyone's.
    template <size_t N>
    const std::array<std::array<uint32_t, WarpExchange::kWords>, 32>& exchange(const std::array<uint32_t, N>& mine) {
        static_assert(N <= WarpExchange::kWords);
        WarpExchange& warp = exchanges_[current_->warp()];
        int round = current_->collectives++;
        auto& buffer = warp.words[round % 2];
        std::copy(mine.begin(), mine.end(), buffer[current_->lane()].begin());
        if (++warp.arrived == 32) {
            warp.arrived = 0;
            ++warp.completed;
            ++progress_;
        }
        block_until([&] { return warp.completed > round; },
                    {"warp collective", uint32_t(current_->warp()), uint32_t(round)});
        return buffer;
    }

    // ---- register budget (setmaxnreg) ----

    // A CTA keeps the registers that it was launched with: an increase waits until others have given up as many.
    void set_register_budget(int registers) {
        if (registers % 8 || registers < 24 || registers > 256)
            fail("setmaxnreg %d is not a multiple of 8 in 24..256", registers);
        int& budget = budgets_[current_->index / 128];
        auto others = [&] { return std::accumulate(budgets_.begin(), budgets_.end(), 0) - budget; };
        block_until([&] { return others() + registers <= register_pool_; },
                    {"setmaxnreg of warpgroup", uint32_t(current_->index / 128), 0});
        budget = registers;
    }

    // ---- memory proxies ----

    void generic_write(uint32_t address, const void* value, uint32_t size) {
        shared_.generic_write(agent(), address, value, size);
        current_->unfenced_lines.push_back(address / kLineBytes);
    }

    void fence_proxy_async() {
        for (uint32_t line : current_->unfenced_lines) shared_.fence_line(current_->index, line);
        current_->unfenced_lines.clear();
    }

    // ---- TMA ----

    // The destination is poisoned now; the bytes arrive only when no thread can run without them. A swizzled
    // destination may begin anywhere in its pattern, as the CUDA guide's rule for its index has it: the XOR takes bits
    // of the shared address. The map is kept by value: the thread that passed it may be gone by then.
    void tma_load(uint32_t shared, const TensorMap& map, uint32_t mbarrier, const Coordinates& origin) {
        if (!find_mbarrier(mbarrier).fenced)
            fail("TMA load onto mbarrier 0x%x, which was initialised without fence.mbarrier_init", mbarrier);
        shared_.async_write_begin(agent(), shared, map.box_bytes(), "TMA load");
        loads_.push_back({shared, map, mbarrier, origin});
    }

    void tma_store(const TensorMap& map, uint32_t shared, const Coordinates& origin) {
        shared_.check_bounds(shared, map.box_bytes(), 128, "TMA store");
        for_each_line(shared, map.box_bytes(),
                      [&](uint32_t line) { shared_.async_read_begin(agent(), line, "TMA store"); });
        scatter(map, shared, origin, shared_);
        current_->stores.push_back({shared, map.box_bytes(), false});
    }

    void tma_store_commit() {
        for (TmaStore& store : current_->stores) store.committed = true;
    }

    // The source may be overwritten again.
    void tma_store_wait() {
        std::erase_if(current_->stores, [&](const TmaStore& store) {
            if (!store.committed) return false;
            for_each_line(store.shared, store.bytes, [&](uint32_t line) {
                shared_.async_read_end(current_->warp(), clocks_[current_->warp()], line);
            });
            return true;
        });
    }

    // ---- wgmma ----

    void wgmma_fence() { current_->wgmma_fenced = true; }

    void wgmma_issue(const WgmmaShape& shape, const WgmmaOperands& operands) {
        if (!current_->wgmma_fenced) fail("wgmma without wgmma.fence since the registers were last touched");
        int lane = current_->index % 128;
        Warpgroup& group = warpgroups_[current_->index / 128];
        if (Wgmma* complete = group.issue(lane, shape, operands)) execute(group, *complete);
    }

    void wgmma_commit() { warpgroups_[current_->index / 128].commit(current_->index % 128); }

    void wgmma_wait(int groups_in_flight) {
        Warpgroup& group = warpgroups_[current_->index / 128];
        int round = group.waits_entered[current_->index % 128]++;
        if (++group.waiting == 128) {
            group.waiting = 0;
            ++group.waits_completed;
            ++progress_;
            int first_warp = current_->index / 128 * 4;
            for (uint32_t line : group.retire(groups_in_flight))
                for (int warp = first_warp; warp < first_warp + 4; ++warp)
                    shared_.async_read_end(warp, clocks_[warp], line);
        }
        block_until([&] { return group.waits_completed > round; },
                    {"wgmma.wait_group", uint32_t(current_->index / 128), 0});
        current_->wgmma_fenced = false;
    }

  private:
    struct TmaLoad {
        uint32_t shared;
        TensorMap map;
        uint32_t mbarrier;
        Coordinates origin;
    };

    // ---- for the scheduler ----

    bool deliver() override {
        if (loads_.empty()) return false;
        complete_tma_loads();
        return true;
    }
    std::string waits() const override { return describe_waits(threads_, mbarriers_, named_barriers_); }
    void check_exit() const override {
        if (!current_->stores.empty()) fail("exit with a TMA store that was not waited for");
    }

    // The mbarrier at this address, which the running thread must know to be initialised.
    Mbarrier& find_mbarrier(uint32_t address) {
        auto found = mbarriers_.find(address);
        if (found == mbarriers_.end()) fail("mbarrier 0x%x was never initialised", address);
        const Mbarrier& barrier = found->second;
        int warp = current_->warp();
        if (warp != barrier.initializer && clocks_[warp].seen[barrier.initializer] < barrier.initialized)
            fail("race: mbarrier 0x%x is used before a barrier ordered this after its initialisation", address);
        return found->second;
    }

    void maybe_flip(Mbarrier& barrier) {
        if (barrier.pending > 0 || barrier.tx_bytes != 0) return;
        ++barrier.phase;
        barrier.pending = barrier.count;
        ++progress_;
    }

    // Nobody can run without more bytes: deliver the oldest load, or with a schedule seed any number in any order.
    void complete_tma_loads() {
        int count = randomized() ? 1 + random_below(int(loads_.size())) : 1;
        for (; count > 0; --count) {
            int chosen = randomized() ? random_below(int(loads_.size())) : 0;
            TmaLoad load = loads_[chosen];
            loads_.erase(loads_.begin() + chosen);
            complete(load);
        }
    }

    void complete(const TmaLoad& load) {
        shared_.async_write_end(load.shared, gather(load.map, load.shared, load.origin), ++tma_epoch_);
        Mbarrier& barrier = mbarriers_.at(load.mbarrier);
        barrier.clock.seen[kTma] = tma_epoch_;
        barrier.tx_bytes -= load.map.box_bytes();
        maybe_flip(barrier);
    }

    // Multiplies at issue into a hidden accumulator; the registers show it after wgmma.wait_group.
    void execute(Warpgroup& group, Wgmma& op) {
        int first_warp = current_->index / 128 * 4;
        group.execute(op, [&](uint32_t line, const char* what) {
            for (int warp = first_warp; warp < first_warp + 4; ++warp)
                shared_.async_read_begin({warp, current_->index, clocks_[warp]}, line, what);
            return shared_.data(line);
        });
    }

    template <class Visit>
    static void for_each_line(uint32_t address, uint32_t bytes, Visit visit) {
        for (uint32_t at = address; at < address + bytes; at += kLineBytes) visit(at);
    }

    SharedMemory shared_;
    std::vector<WarpExchange> exchanges_;
    std::vector<Warpgroup> warpgroups_;
    std::vector<int> budgets_;  // registers per thread, one per warpgroup
    int register_pool_ = 0;     // their sum at the launch
    std::map<uint32_t, Mbarrier> mbarriers_;
    std::array<NamedBarrier, 16> named_barriers_;
    std::vector<TmaLoad> loads_;
    uint32_t tma_epoch_ = 0;
};

}  // namespace emu
