// Memory that the kernels walk through.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "element.h"

namespace pawl {

// Zeroed, aligned memory that asks for huge pages: a step walks all weights, and small pages would miss the TLB. Large
// pieces are mapped by themselves: what replaced weights had is the system's again as soon as they are freed, where a
// heap would keep it for the thread that had loaded them.
class Memory {
public:
    Memory() = default;
    explicit Memory(int64_t bytes) {
        // Room behind the end: tiles fetch ahead of what they read.
        const int64_t alignment = bytes >= kHugePage ? kHugePage : 64;
        size_ = size_t(rounded_up(bytes + 64, alignment));
#if defined(__linux__)
        if (alignment == kHugePage) {
            map();
            return;
        }
#endif
        data_ = std::aligned_alloc(size_t(alignment), size_);
        if (data_ == nullptr) throw std::bad_alloc();
        std::memset(data_, 0, size_);
    }
    Memory(Memory&& other) noexcept { *this = std::move(other); }
    Memory& operator=(Memory&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(mapped_, other.mapped_);
        return *this;
    }
    ~Memory() {
#if defined(__linux__)
        if (mapped_ != nullptr) {
            munmap(mapped_, size_ + size_t(kHugePage));
            return;
        }
#endif
        std::free(data_);
    }

    template <class Value>
    Value* as() const {
        return static_cast<Value*>(data_);
    }

private:
    static constexpr int64_t kHugePage = 2 << 20;

#if defined(__linux__)
    // The system gives addresses that are multiples of a small page: one huge page more has a multiple of its own.
    void map() {
        void* got = mmap(nullptr, size_ + size_t(kHugePage), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (got == MAP_FAILED) throw std::bad_alloc();
        mapped_ = got;
        data_ = reinterpret_cast<void*>(rounded_up(int64_t(reinterpret_cast<intptr_t>(got)), kHugePage));
        madvise(data_, size_, MADV_HUGEPAGE);
    }
#endif

    void* data_ = nullptr;
    void* mapped_ = nullptr;   // where a mapping of `size_` bytes and one huge page begins; null: it is the heap's
    size_t size_ = 0;
};

// Many pieces that live as long as each other, side by side in huge pages.
class Arena {
public:
    // Zeroed, at an address that is a multiple of 64. Throws std::bad_alloc.
    uint8_t* take(int64_t bytes) {
        const int64_t wanted = rounded_up(bytes, 64);
        if (wanted > left_) {
            left_ = std::max(wanted, kChunk);
            chunks_.emplace_back(left_);
            next_ = chunks_.back().as<uint8_t>();
        }
        uint8_t* taken = next_;
        next_ += wanted, left_ -= wanted;
        return taken;
    }

private:
    static constexpr int64_t kChunk = 32 << 20;   // what is not touched of one takes no memory
    std::vector<Memory> chunks_;
    uint8_t* next_ = nullptr;
    int64_t left_ = 0;
};

}  // namespace pawl
