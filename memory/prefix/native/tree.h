// The compiled radix tree: what memory/prefix/radix.py does, which is the reference. Knows nothing of Python.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "children.h"
#include "node.h"
#include "order.h"

namespace pawl {

struct Counts {
    int64_t matches = 0;
    int64_t hit_tokens = 0;
    int64_t missed_tokens = 0;
    int64_t insertions = 0;
    int64_t adopted_pages = 0;
    int64_t splits = 0;
    int64_t evicted_pages = 0;
};

// The last node that the longest cached prefix reaches into, the length of that prefix, and how far the node itself
// goes, in pages.
struct Reached {
    Node* node;
    size_t at;
    size_t end;
};

struct Evicted {
    std::vector<int32_t> pages;
    int64_t fence = 0;
    std::vector<Root*> emptied;  // Roots without children, for whoever made them to take out and delete.
};

// What can fail for want of memory does so before it changes anything, by std::bad_alloc; the rest is noexcept. Only
// `evict` may fail between two victims, each of which has left whole.
class Tree {
public:
    Tree(size_t page_size, Policy policy, uint64_t seed)
        : page_size(page_size), order(policy), children_(page_size, seed) {}

    const size_t page_size;
    Order order;
    Counts counts;
    int64_t held = 0;
    int64_t evictable = 0;
    int64_t num_nodes = 0;
    int64_t num_holds = 0;

    void enroll(Root* root) noexcept { root->serial = ++last_serial_; }

    Reached reach(Root* root, const int32_t* tokens, size_t num_pages) const noexcept {
        Node* node = root;
        size_t at = 0;
        while (at < num_pages) {
            Node* child = children_.find(node, tokens + at * page_size);
            if (child == nullptr) break;
            const size_t common = common_pages(child, tokens + at * page_size, num_pages - at);
            if (common < child->edge.count) return {child, at + common, at + child->edge.count};
            node = child;
            at += common;
        }
        return {node, at, at};
    }

    // The node that ends where the prefix ends; splits an edge if need be.
    Node* cut(const Reached& reached) {
        if (reached.end == reached.at) return reached.node;
        return split(reached.node, reached.node->edge.count - (reached.end - reached.at));
    }

    // A new leaf below `parent`, about to be held.
    Node* grow(Node* parent, const int32_t* tokens, const int32_t* pages, size_t num_pages, int64_t fence) {
        std::unique_ptr<Node> made = make_node();
        made->edge.assign(pages, tokens, num_pages, page_size);
        Node* node = made.release();
        node->parent = parent;
        node->fence = fence;
        node->previous = parent->last_child;
        (parent->last_child != nullptr ? parent->last_child->next : parent->first_child) = node;
        parent->last_child = node;
        children_.add(node);
        order.created(node);
        evictable += static_cast<int64_t>(num_pages);
        counts.adopted_pages += static_cast<int64_t>(num_pages);
        ++num_nodes;
        return node;
    }

    // One more holder. Parents are touched only as far as nodes become held.
    void pin(Node* node) noexcept {
        ++num_holds;
        for (; node != nullptr && ++node->holds == 1; node = node->parent) {
            order.remove(node);
            evictable -= static_cast<int64_t>(node->edge.count);
            held += static_cast<int64_t>(node->edge.count);
        }
    }

    // One holder less. Parents are touched only as far as nodes become unheld, children before parents.
    void unpin(Node* node, int64_t fence) noexcept {
        --num_holds;
        node->fence = std::max(node->fence, fence);
        for (; node != nullptr && --node->holds == 0; node = node->parent) {
            order.push(node);
            held -= static_cast<int64_t>(node->edge.count);
            evictable += static_cast<int64_t>(node->edge.count);
        }
    }

    // A request uses the path of `num_tokens` tokens to `node`, and has used the nodes of the first `covered` before.
    void use(Node* node, int64_t num_tokens, int64_t covered, int64_t priority) noexcept {
        if (!order.counts_uses) return;
        for (int64_t end = num_tokens; is_node(node) && end > covered; node = node->parent) {
            order.use(node, priority);
            end -= static_cast<int64_t>(node->edge.count * page_size);
        }
    }

    void unuse(Node* node) noexcept {
        if (!order.counts_uses) return;
        for (; is_node(node); node = node->parent) order.unuse(node);
    }

    // Drop unheld leaves until `count` pages are gone or none is left.
    Evicted evict(int64_t count) {
        Evicted gone;
        if (count <= 0) return gone;
        int64_t freed = 0;
        while (freed < count && order.victim() != nullptr) {
            Node* victim = order.victim();
            const Edge& edge = victim->edge;
            gone.pages.insert(gone.pages.end(), edge.pages(), edge.pages() + edge.count);
            if (victim->parent->parent == nullptr) gone.emptied.reserve(gone.emptied.size() + 1);
            freed += static_cast<int64_t>(edge.count);
            gone.fence = std::max(gone.fence, victim->fence);
            drop(victim, gone.emptied);
        }
        return gone;
    }

    // Every node but the roots below `root`, parents first, children in the order in which they came.
    static std::vector<Node*> walk(Root* root) {
        std::vector<Node*> found;
        Node* node = root->first_child;
        while (node != nullptr) {
            found.push_back(node);
            if (node->first_child != nullptr) {
                node = node->first_child;
                continue;
            }
            while (is_node(node) && node->next == nullptr) node = node->parent;
            node = is_node(node) ? node->next : nullptr;
        }
        return found;
    }

    // Only for the end: frees the nodes below `root`, and `root`. Leaves first, as there may be no memory for a list.
    static void destroy(Root* root) noexcept {
        Node* node = root;
        for (;;) {
            while (node->first_child != nullptr) node = node->first_child;
            if (node == root) break;
            Node* parent = node->parent;
            parent->first_child = node->next;
            delete node;
            node = parent;
        }
        delete root;
    }

    // After the last node has left: give back what a large tree needed.
    void forget_size() { children_.clear(); }

    // The first statement that does not hold, or nullptr. What the Python checks cannot see: links and the table.
    const char* broken(const std::vector<Root*>& roots) const {
        size_t num_found = 0;
        for (Root* root : roots) {
            for (Node* node : walk(root)) {
                ++num_found;
                if (children_.find(node->parent, node->edge.tokens(page_size)) != node) {
                    return "a child is found by its first page, and knows its parent";
                }
                Node* after = node->next;
                if (after != nullptr ? after->previous != node : node->parent->last_child != node) {
                    return "children are a list";
                }
                if (node->edge.first > node->edge.count || node->edge.first + node->edge.count > node->edge.capacity) {
                    return "at most half of a block is unused";
                }
            }
        }
        if (children_.size() != num_found) return "the table holds every node once";
        return order.broken();
    }

private:
    static bool is_node(const Node* node) noexcept { return node != nullptr && node->parent != nullptr; }

    std::unique_ptr<Node> make_node() {
        children_.reserve();
        order.reserve(static_cast<size_t>(num_nodes) + 1);
        auto made = std::make_unique<Node>();
        made->serial = ++last_serial_;
        return made;
    }

    // Leading pages that the edge of `child` and `tokens` share; the first is known to be equal.
    size_t common_pages(const Node* child, const int32_t* tokens, size_t num_pages) const noexcept {
        const int32_t* key = child->edge.tokens(page_size);
        const size_t length = std::min(child->edge.count, num_pages) * page_size;
        constexpr size_t SPAN = 128;  // Long enough for memcmp to pay, short enough to look through.
        size_t at = page_size;
        while (at < length) {
            const size_t span = std::min(SPAN, length - at);
            if (std::memcmp(key + at, tokens + at, span * sizeof(int32_t)) != 0) break;
            at += span;
        }
        while (at < length && key[at] == tokens[at]) ++at;
        return at / page_size;
    }

    // Cut the first `num_pages` pages of `node` off into a new parent. `node` keeps its identity, so holds on it stay.
    Node* split(Node* node, size_t num_pages) {
        std::unique_ptr<Node> made = make_node();
        made->edge.assign(node->edge.pages(), node->edge.tokens(page_size), num_pages, page_size);
        Node* upper = made.release();
        Node* parent = node->parent;
        upper->parent = parent;
        upper->previous = node->previous;
        upper->next = node->next;
        (upper->previous != nullptr ? upper->previous->next : parent->first_child) = upper;
        (upper->next != nullptr ? upper->next->previous : parent->last_child) = upper;
        children_.replace(node, upper);
        node->edge.cut_front(num_pages, page_size);
        node->parent = upper;
        upper->first_child = upper->last_child = node;
        node->previous = node->next = nullptr;
        children_.add(node);
        if (node->holds != 0) upper->holds = 1;
        order.split(upper, node);
        ++num_nodes;
        ++counts.splits;
        return upper;
    }

    // Take an unheld leaf out. Who held it may have touched its parents' pages as well.
    void drop(Node* victim, std::vector<Root*>& emptied) noexcept {
        Node* parent = victim->parent;
        (victim->previous != nullptr ? victim->previous->next : parent->first_child) = victim->next;
        (victim->next != nullptr ? victim->next->previous : parent->last_child) = victim->previous;
        children_.remove(victim);
        order.dropped(victim);
        parent->fence = std::max(parent->fence, victim->fence);
        evictable -= static_cast<int64_t>(victim->edge.count);
        counts.evicted_pages += static_cast<int64_t>(victim->edge.count);
        --num_nodes;
        delete victim;
        // A root is held by itself, so the order never offers it.
        if (parent->parent == nullptr && parent->first_child == nullptr) emptied.push_back(static_cast<Root*>(parent));
    }

    Children children_;
    uint64_t last_serial_ = 0;
};

}  // namespace pawl
