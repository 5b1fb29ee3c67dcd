// A few threads that walk through a step together.
//
// A step is a sequence of phases, a phase a number of independent tasks. Every thread runs the same sequence; in each
// phase it claims tasks until none is left, and goes on when all are done, by whomever. So nobody waits for a thread
// that does not run: one that comes late finds the phases empty and catches up. Between steps the threads sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace pawl {

struct alignas(64) PhaseCounter {
    std::atomic<int64_t> claimed{0};
    std::atomic<int64_t> done{0};
};

// One thread's walk through the phases of one step.
class Walk {
public:
    Walk(PhaseCounter* first, int thread) : thread(thread), next_(first) {}

    const int thread;
    uint32_t meetings = 0;   // with other ranks, so far

    // Run work(0) .. work(tasks - 1), each once, by any thread; returns when all of them are done and visible.
    template <class Work>
    void phase(int64_t tasks, Work&& work) {
        PhaseCounter& counter = *next_++;
        int64_t finished = 0;
        for (;;) {
            const int64_t task = counter.claimed.fetch_add(1, std::memory_order_relaxed);
            if (task >= tasks) break;
            work(task);
            ++finished;
        }
        if (finished > 0) counter.done.fetch_add(finished, std::memory_order_release);
        wait(counter, tasks);
    }

private:
    static void wait(const PhaseCounter& counter, int64_t tasks);

    PhaseCounter* next_;
};

// Tell the core that this thread waits for another.
void relax();

class Pool {
public:
    typedef std::function<void(Walk&)> Body;

    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return int(workers_.size()) + 1; }

    // Run `body`, which goes through at most `phases` phases, on this thread and the workers. One caller at a time.
    void run(int phases, const Body& body);

private:
    void work(int thread);
    uint64_t next_step(uint64_t seen);

    std::vector<std::thread> workers_;
    std::unique_ptr<PhaseCounter[]> counters_;
    int num_counters_ = 0;
    const Body* body_ = nullptr;

    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> step_{0};    // number of the newest step; kStop ends the workers
    std::atomic<uint64_t> open_{0};    // number of the step that may be entered, 0: none
    std::atomic<int> inside_{0};       // workers that are or may be in it
    static constexpr uint64_t kStop = ~uint64_t(0);
};

}  // namespace pawl
