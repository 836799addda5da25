// One CTA under emulation: its barriers, its shared memory and its asynchronous engines, over its scheduler.
#pragma once
#include <functional>
#include <memory>
#include <numeric>

#include "emulation/barriers.hpp"
#include "emulation/shared_memory.hpp"
#include "emulation/tensor_map.hpp"
#include "emulation/wgmma.hpp"

namespace emu {

class Cta;

struct Cluster {
    std::vector<std::unique_ptr<Cta>> ctas;  // by rank
    NamedBarrier barrier;
};

class Cta : public Barriers {
  public:
    Cta(const LaunchShape& shape, int block, const std::function<void()>& kernel, Cluster& cluster)
        : Barriers(shape, block, kernel), cluster_(cluster) {
        shared_.reset(shape.shared_bytes);
        exchanges_.resize(shape.threads / 32);
        warpgroups_.resize(shape.threads / 128);
        budgets_.assign(shape.threads / 128, kRegisterFile / shape.threads / 8 * 8);
        register_pool_ = std::accumulate(budgets_.begin(), budgets_.end(), 0);
    }

    // The CTA that this operating-system thread runs.
    static Cta& running() { return static_cast<Cta&>(*Scheduler::running); }

    SharedMemory& shared() { return shared_; }

    // ---- barriers ----

    void mbarrier_init(uint32_t address, int count) {
        shared_.check_bounds(address, 8, 8, "mbarrier.init");
        start_mbarrier(address, count);
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
        if (!map.constant) global_access("TMA load");
        if (!find_mbarrier(mbarrier, agent()).fenced)
            fail("TMA load onto mbarrier 0x%x, which was initialised without fence.mbarrier_init", mbarrier);
        shared_.async_write_begin(agent(), shared, map.box_bytes(), "TMA load");
        loads_.push_back({shared, map, mbarrier, origin});
    }

    void tma_store(const TensorMap& map, uint32_t shared, const Coordinates& origin) {
        global_access("TMA store");
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
            for_each_line(store.shared, store.bytes,
                          [&](uint32_t line) { shared_.async_read_end(current_->warp(), agent().seen, line); });
            return true;
        });
    }

    // Nobody can run without more bytes: lets something arrive. False where nothing is under way.
    bool deliver() {
        if (!loads_.empty())
            complete_tma_loads();
        else if (!remote_stores_.empty())
            complete_remote_stores();
        else
            return false;
        return true;
    }

    // ---- the cluster ----

    // Above the bytes of any shared memory: an address of another CTA's is out of bounds for whoever forgets that.
    static constexpr int kRankShift = 24;

    uint32_t remote_address(uint32_t address, int rank) const {
        if (rank < 0 || rank >= shape_.cluster) fail("rank %d of a cluster of %d", rank, shape_.cluster);
        return address | uint32_t(rank + 1) << kRankShift;
    }

    // A GPU takes a thread that has ended for one that has come; here every thread must come.
    void cluster_sync() {
        cluster_.barrier.expected = shape_.cluster * shape_.threads;
        meet(cluster_.barrier, true, {"cluster barrier", 0, 0});
    }

    void mbarrier_arrive_remote(uint32_t remote) {
        Cta& other = owner(remote);
        uint32_t address = local(remote);
        Mbarrier& barrier = other.find_mbarrier(address, agent_in(other.rank()));
        other.touched_[rank()][current_->warp()] = agent().seen[current_->warp()];
        release(barrier.clock);
        other.count_arrival(barrier, address);
    }

    // Arrives like the bytes of a TMA load, only when no thread can run without it.
    void store_remote(uint32_t remote, const void* value, uint32_t size, uint32_t remote_mbarrier) {
        Cta& other = owner(remote);
        if (&owner(remote_mbarrier) != &other) fail("store to another CTA than that of its mbarrier");
        Agent by = agent_in(other.rank());
        other.find_mbarrier(local(remote_mbarrier), by);
        other.shared_.remote_write_begin(by, local(remote), size);
        auto* bytes = static_cast<const uint8_t*>(value);
        other.remote_stores_.push_back({local(remote), {bytes, bytes + size}, local(remote_mbarrier)});
    }

    // At the end of the cluster: shared memory is gone once its CTA has ended, so that must come after every access.
    void check_outlived() const {
        Clock last;
        for (const Clock& clock : clocks_) last.join(clock);
        if (!remote_stores_.empty() || !last.covers(touched_))
            fail(
                "block %d may end before another CTA of its cluster has used its shared memory for the last time;"
                " it must wait for that, or call cluster_sync at its end",
                block());
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
                    shared_.async_read_end(warp, agent_of(warp).seen, line);
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

    void check_exit() const override {
        if (!current_->stores.empty()) fail("exit with a TMA store that was not waited for");
    }

    struct RemoteStore {
        uint32_t shared;
        std::vector<uint8_t> payload;
        uint32_t mbarrier;
    };

    Cta& owner(uint32_t remote) const {
        uint32_t rank = remote >> kRankShift;
        if (rank > cluster_.ctas.size()) fail("0x%x is an address of no block of the cluster", remote);
        return *cluster_.ctas[rank ? rank - 1 : this->rank()];
    }
    static uint32_t local(uint32_t remote) { return remote & ((1u << kRankShift) - 1); }

    // The oldest load, or with a schedule seed any number in any order.
    void complete_tma_loads() {
        int count = randomized() ? 1 + random_below(int(loads_.size())) : 1;
        for (; count > 0; --count) {
            int chosen = randomized() ? random_below(int(loads_.size())) : 0;
            TmaLoad load = loads_[chosen];
            loads_.erase(loads_.begin() + chosen);
            complete(load);
        }
    }

    void complete_remote_stores() {
        size_t left = randomized() ? random_below(int(remote_stores_.size())) : 0;
        if (randomized()) shuffle(remote_stores_);
        for (; remote_stores_.size() > left; remote_stores_.pop_back()) {
            const RemoteStore& store = remote_stores_.back();
            shared_.async_write_end(store.shared, store.payload, ++tma_epoch_);
            count_bytes(store.mbarrier, uint32_t(store.payload.size()), tma_epoch_);
            touched_[rank()][kTma] = tma_epoch_;
        }
    }

    void complete(const TmaLoad& load) {
        shared_.async_write_end(load.shared, gather(load.map, load.shared, load.origin), ++tma_epoch_);
        count_bytes(load.mbarrier, load.map.box_bytes(), tma_epoch_);
    }

    // Multiplies at issue into a hidden accumulator; the registers show it after wgmma.wait_group.
    void execute(Warpgroup& group, Wgmma& op) {
        int first_warp = current_->index / 128 * 4;
        group.execute(op, [&](uint32_t line, const char* what) {
            for (int warp = first_warp; warp < first_warp + 4; ++warp)
                shared_.async_read_begin(agent_of(warp), line, what);
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
    std::vector<TmaLoad> loads_;
    std::vector<RemoteStore> remote_stores_;
    uint32_t tma_epoch_ = 0;
    Cluster& cluster_;
    Clock touched_;  // what other CTAs have done to this one
};

}  // namespace emu
