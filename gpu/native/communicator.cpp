#include "communicator.h"

#include <chrono>
#include <cstring>
#include <new>
#include <thread>

#include "adapter.h"
#include "pool.h"

#if defined(__linux__)
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#endif

namespace pawl {

#if defined(__linux__)
namespace {

// About a microsecond of spinning: on a core that both must share, the one that is waited for runs only once it is given away.
constexpr int kSpins = 30, kYields = 200;
// How long a waiter sleeps before it looks whether whom it waits for is alive.
constexpr int64_t kSleepNs = 10'000'000;

int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

// Sleep while the word has this value, but not long. The word is in memory of several processes.
void sleep_on(std::atomic<uint32_t>& word, uint32_t value) {
    const timespec limit{0, kSleepNs};
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, value, &limit, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}

std::string name_of(int rank) { return "rank " + std::to_string(rank); }

}  // namespace

Communicator::Communicator(const std::string& path, uint64_t life, int rank, int ranks, double timeout_s)
    : rank(rank), ranks(ranks), timeout_ns_(int64_t(timeout_s * 1e9)), process_files_(size_t(ranks), -1) {
    const auto require = [&](bool holds, const std::string& reason) {
        if (holds) return;
        close();
        throw Refused{reason};
    };
    require(ranks >= 1 && ranks <= kMostRanks && rank >= 0 && rank < ranks, "no such rank");
    file_ = open(path.c_str(), O_RDWR | O_CLOEXEC);
    require(file_ >= 0, "the segment " + path + " cannot be opened: " + std::strerror(errno));
    void* header = mmap(nullptr, kHeaderBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
    require(header != MAP_FAILED, std::string("the segment cannot be mapped: ") + std::strerror(errno));
    header_ = static_cast<SegmentHeader*>(header);
    require(header_->life == life && int(header_->ranks) == ranks, "the segment is of another life of these ranks");
    int32_t nobody = 0;
    require(place(rank).process.compare_exchange_strong(nobody, int32_t(getpid())),
            "the place of " + name_of(rank) + " was taken by process " + std::to_string(nobody));
}

Communicator::~Communicator() {
    place(rank).left.store(1);
    wake_all(place(rank).met);
    close();
}

void Communicator::close() {
    for (Mapping& buffer : buffers_)
        if (buffer.data != nullptr) munmap(buffer.data, size_t(buffer.bytes));
    for (int file : process_files_)
        if (file >= 0) ::close(file);
    if (header_ != nullptr) munmap(header_, kHeaderBytes);
    if (file_ >= 0) ::close(file_);
}

void* Communicator::reserve(int buffer, int64_t bytes) {
    Mapping& mapping = buffers_[buffer];
    if (bytes <= mapping.bytes) return mapping.data;
    const int64_t wanted = (bytes + kHeaderBytes - 1) / kHeaderBytes * kHeaderBytes;
    const int64_t at = (buffer + 1) * kBufferSpacing;
    if (wanted > kBufferSpacing) throw std::bad_alloc();
    if (mapping.data != nullptr) munmap(mapping.data, size_t(mapping.bytes));
    mapping = Mapping();
    // Memory is taken now: a page that could not be had later would end the process.
    while (fallocate(file_, 0, at, wanted) != 0)
        if (errno != EINTR) throw std::bad_alloc();   // a signal, such as to go on after a stop, ends nothing
    void* data = mmap(nullptr, size_t(wanted), PROT_READ | PROT_WRITE, MAP_SHARED, file_, at);
    if (data == MAP_FAILED) throw std::bad_alloc();
    mapping = Mapping{data, wanted};
    return data;
}

void Communicator::arrive() {
    if (lost()) return;
    Place& own = place(rank);
    // Either a waiter that counts itself sees the new number, or it is seen here.
    own.met.fetch_add(1, std::memory_order_seq_cst);
    if (own.sleepers.load(std::memory_order_seq_cst) > 0) wake_all(own.met);
}

void Communicator::wait(uint32_t number) {
    for (int other = 0; other < ranks; ++other) {
        if (other == rank) continue;
        int tries = 0;
        while (!has_come(other, number) && tries < kSpins + kYields) {
            if (lost()) return;
            if (tries++ < kSpins)
                relax();
            else
                std::this_thread::yield();
        }
        if (!has_come(other, number)) wait_slowly(other, number);
        if (lost()) return;
    }
}

void Communicator::wait_measured(uint32_t number) {
    const int64_t began = now_ns();
    wait(number);
    waited_ns_.store(waited_ns() + now_ns() - began, std::memory_order_relaxed);
}

void Communicator::wait_slowly(int other, uint32_t number) {
    Place& place = this->place(other);
    const int64_t deadline = now_ns() + timeout_ns_;
    while (!lost()) {
        // Whoever came and went has come: look at what ends the wait first, at the number last.
        const uint32_t broken = header_->broken.load(std::memory_order_acquire);
        const bool gone = is_gone(other), late = now_ns() >= deadline;
        if (has_come(other, number)) return;
        if (broken != 0) return give_up(int(broken) - 1, name_of(int(broken) - 1) + " was given up by another rank");
        if (gone) return give_up(other, name_of(other) + " is gone");
        if (late)
            return give_up(other, name_of(other) + " did not come within " +
                                      std::to_string(double(timeout_ns_) / 1e9) + " s");
        place.sleepers.fetch_add(1, std::memory_order_seq_cst);
        const uint32_t met = place.met.load(std::memory_order_seq_cst);
        if (int32_t(met - number) < 0) sleep_on(place.met, met);
        place.sleepers.fetch_sub(1, std::memory_order_relaxed);
    }
}

// Whether the rank was here and its process has ended, or it has left. Where that cannot be known, the deadline stands.
bool Communicator::is_gone(int other) {
    Place& place = this->place(other);
    if (place.left.load(std::memory_order_acquire) != 0) return true;
    const int32_t process = place.process.load(std::memory_order_acquire);
    if (process == 0 || process == getpid()) return false;
    std::lock_guard<std::mutex> guard(mutex_);
    int& file = process_files_[size_t(other)];
    if (file < 0) {
        file = int(syscall(SYS_pidfd_open, process, 0));
        if (file < 0) return errno == ESRCH;
    }
    pollfd ended{file, POLLIN, 0};
    return poll(&ended, 1, 0) == 1;
}

void Communicator::compare_steps() {
    const auto said = [&](int by) { return place(by).step[steps_ % 2].load(std::memory_order_relaxed); };
    for (int other = 0; other < ranks && !lost(); ++other)
        if (said(other) != said(rank))
            give_up(other, name_of(rank) + " and " + name_of(other) + " were told different steps");
}

void Communicator::give_up(int blamed, const std::string& reason) {
    std::lock_guard<std::mutex> guard(mutex_);
    if (lost()) return;
    reason_ = reason;
    uint32_t unbroken = 0;
    header_->broken.compare_exchange_strong(unbroken, uint32_t(blamed) + 1);
    lost_.store(true, std::memory_order_release);
    wake_all(place(rank).met);
}

std::string Communicator::reason() const {
    std::lock_guard<std::mutex> guard(mutex_);
    return reason_;
}

#else

Communicator::Communicator(const std::string&, uint64_t, int rank, int ranks, double) : rank(rank), ranks(ranks), timeout_ns_(0) {
    throw Refused{"ranks of the compiled kernels share memory as Linux does"};
}
Communicator::~Communicator() = default;
void* Communicator::reserve(int, int64_t) { return nullptr; }
void Communicator::arrive() {}
void Communicator::wait(uint32_t) {}
void Communicator::wait_measured(uint32_t) {}
void Communicator::compare_steps() {}
void Communicator::give_up(int, const std::string&) {}
std::string Communicator::reason() const { return reason_; }

#endif

}  // namespace pawl
