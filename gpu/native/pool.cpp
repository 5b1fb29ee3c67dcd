#include "pool.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace pawl {

void relax() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

void Walk::pause(int spins) {
    if (spins < kPauses)
        relax();
    else
        std::this_thread::yield();
}

int Walk::behind(const Counter* claimed, int64_t tasks, int spins) const {
    for (int i = 1; i < threads; ++i) {
        const int part = (thread + i) % threads;
        const int64_t size = part_begin(tasks, part + 1, threads) - part_begin(tasks, part, threads);
        const int64_t taken = claimed[part].value.load(std::memory_order_relaxed);
        const int patience = taken == 0 ? 0 : size - taken > size / 4 ? kPauses / 2 : kPauses;
        if (taken < size && spins + kLook >= patience) return part;
    }
    return thread;
}

Pool::Pool(int threads) {
    for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> guard(mutex_);
        step_.store(kStop);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Pool::run(int phases, const Body& body) {
    const int counters = phases * (1 + threads());
    if (counters > num_counters_) {
        counters_.reset(new Counter[size_t(counters)]);
        num_counters_ = counters;
    } else {
        for (int i = 0; i < counters; ++i) counters_[size_t(i)].value.store(0, std::memory_order_relaxed);
    }
    body_ = &body;
    if (!workers_.empty()) {
        {
            std::lock_guard<std::mutex> guard(mutex_);
            const uint64_t step = step_.load() + 1;
            open_.store(step);
            step_.store(step);
        }
        wake_.notify_all();
    }
    Walk walk(counters_.get(), 0, threads());
    body(walk);
    // A worker announces itself before it looks whether the step is open, so after this none is or gets inside.
    open_.store(0);
    for (int spins = 0; inside_.load() != 0; ++spins) Walk::pause(spins);
}

uint64_t Pool::next_step(uint64_t seen) {
    for (int spins = 0; spins < kPauses; ++spins) {
        if (step_.load() != seen) return step_.load();
        relax();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, [&] { return step_.load() != seen; });
    return step_.load();
}

void Pool::work(int thread) {
    for (uint64_t seen = 0;;) {
        seen = next_step(seen);
        if (seen == kStop) return;
        inside_.fetch_add(1);
        if (open_.load() == seen) {
            Walk walk(counters_.get(), thread, threads());
            (*body_)(walk);
        }
        inside_.fetch_sub(1);
    }
}

}  // namespace pawl
