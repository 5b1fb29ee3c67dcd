// In which order nodes leave. What the policies mean is said in memory/prefix/order.py, which is the reference.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <vector>

#include "node.h"

namespace pawl {

enum class Policy { lru, lfu, fifo, mru, filo, priority };

// lru: an intrusive ring of the unheld nodes, every operation O(1). The others: a heap of the unheld leaves in which
// every node knows its place, O(log leaves).
class Order {
public:
    explicit Order(Policy policy)
        : counts_uses(policy == Policy::lfu || policy == Policy::priority), policy_(policy) {}

    const bool counts_uses;

    // Room for so many nodes. The only function that can fail: throws std::bad_alloc, without a change.
    void reserve(size_t num_nodes) {
        if (policy_ != Policy::lru && heap_.capacity() < num_nodes) heap_.reserve(2 * num_nodes);
    }

    void created(Node* node) noexcept {
        if (policy_ != Policy::lru) node->rank.created = node->rank.used = ++clock_;
    }

    void split(Node* upper, const Node* lower) noexcept {
        if (policy_ == Policy::lru) {
            if (upper->holds == 0) push(upper);
            return;
        }
        upper->rank = lower->rank;
        upper->rank.entry = 0;
    }

    void use(Node* node, int64_t priority) noexcept {
        ++node->rank.hits;
        if (priority > node->rank.priority) node->rank.priority = priority;
    }

    void unuse(Node* node) noexcept { --node->rank.hits; }

    void push(Node* node) noexcept {
        if (policy_ == Policy::lru) {
            node->older = ring_.older;
            node->newer = &ring_;
            node->older->newer = ring_.older = node;
            return;
        }
        node->rank.used = ++clock_;
        if (node->first_child == nullptr) offer(node);
    }

    void remove(Node* node) noexcept {
        if (policy_ == Policy::lru) {
            node->older->newer = node->newer;
            node->newer->older = node->older;
            node->older = node->newer = node;
        } else if (node->rank.entry != 0) {
            node->rank.entry = 0;
            Node* last = heap_.back();
            heap_.pop_back();
            if (last != node) settle(last, node->rank.place);
        }
    }

    // `victim` has left; its parent may be a leaf now.
    void dropped(Node* victim) noexcept {
        remove(victim);
        Node* parent = victim->parent;
        if (policy_ != Policy::lru && parent->first_child == nullptr && parent->holds == 0) offer(parent);
    }

    Node* victim() const noexcept {
        if (policy_ != Policy::lru) return heap_.empty() ? nullptr : heap_.front();
        return ring_.newer == &ring_ ? nullptr : ring_.newer;
    }

    // What waits to leave: oldest first in the ring, or as the heap has it.
    std::vector<Node*> waiting() const {
        if (policy_ != Policy::lru) return heap_;
        std::vector<Node*> found;
        for (Node* node = ring_.newer; node != &ring_; node = node->newer) found.push_back(node);
        return found;
    }

    int64_t clock() const noexcept { return clock_; }

    // The first statement that does not hold, or nullptr. What the Python checks cannot see: places and neighbours.
    const char* broken() const noexcept {
        for (size_t place = 0; place < heap_.size(); ++place) {
            if (heap_[place]->rank.entry == 0 || heap_[place]->rank.place != place) return "a node knows its place";
            if (place > 0 && before(heap_[place], heap_[(place - 1) / 2])) return "the order of leaving is a heap";
        }
        const Node* node = &ring_;
        do {
            if (node->newer->older != node) return "the order of leaving is a ring";
            node = node->newer;
        } while (node != &ring_);
        return nullptr;
    }

private:
    std::tuple<int64_t, int64_t, int64_t> key(const Node* node) const noexcept {
        const Rank& rank = node->rank;
        switch (policy_) {
            case Policy::lfu: return {rank.hits, rank.used, rank.entry};
            case Policy::fifo: return {rank.created, 0, rank.entry};
            case Policy::mru: return {-rank.used, 0, rank.entry};
            case Policy::filo: return {-rank.created, 0, rank.entry};
            case Policy::priority: return {rank.priority, rank.used, rank.entry};
            case Policy::lru: break;
        }
        return {0, 0, 0};
    }

    bool before(const Node* one, const Node* other) const noexcept { return key(one) < key(other); }

    void offer(Node* node) noexcept {
        node->rank.entry = ++clock_;
        heap_.push_back(node);  // `reserve` was called for it.
        settle(node, heap_.size() - 1);
    }

    // Put `node` at `place`, which is free, and then up or down to where it belongs.
    void settle(Node* node, size_t place) noexcept {
        while (place > 0 && before(node, heap_[(place - 1) / 2])) {
            put(heap_[(place - 1) / 2], place);
            place = (place - 1) / 2;
        }
        for (size_t child; (child = 2 * place + 1) < heap_.size(); place = child) {
            if (child + 1 < heap_.size() && before(heap_[child + 1], heap_[child])) ++child;
            if (!before(heap_[child], node)) break;
            put(heap_[child], place);
        }
        put(node, place);
    }

    void put(Node* node, size_t place) noexcept {
        heap_[place] = node;
        node->rank.place = place;
    }

    Policy policy_;
    Node ring_;
    std::vector<Node*> heap_;
    int64_t clock_ = 0;
};

}  // namespace pawl
