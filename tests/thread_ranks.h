// Several ranks in one process: a thread each.
#pragma once

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/ranks/ranks.h"

namespace jem {

class ThreadRanks final : public Ranks {
public:
    // What the threads share. A thread that fails ends the others' waits.
    struct Table {
        explicit Table(int n) : size(n), places(static_cast<size_t>(n)) {}
        void meet() {
            std::unique_lock lock(mutex);
            const int64_t round = rounds;
            if (++waiting == size) {
                waiting = 0;
                ++rounds;
                met.notify_all();
            } else {
                met.wait(lock, [&] { return rounds != round || failed; });
            }
            if (failed) throw RankLost("another thread failed");
        }
        void fail() {
            const std::lock_guard lock(mutex);
            failed = true;
            met.notify_all();
        }

        int size;
        std::vector<const std::byte*> places;
        std::mutex mutex;
        std::condition_variable met;
        int waiting = 0;
        int64_t rounds = 0;
        bool failed = false;
    };

    ThreadRanks(Table& table, int rank) : Ranks(rank, table.size), table_(table) {}

    void all_gather(void* all, size_t bytes) override {
        exchange(all, [&](const std::byte* from, size_t r) {
            if (from != all) std::memcpy(static_cast<std::byte*>(all) + r * bytes, from + r * bytes, bytes);
        });
    }
    void all_to_all(void* to, const void* from, size_t bytes) override {
        exchange(from, [&](const std::byte* theirs, size_t r) {
            std::memcpy(static_cast<std::byte*>(to) + r * bytes, theirs + static_cast<size_t>(rank()) * bytes, bytes);
        });
    }
    void broadcast(void* data, size_t bytes) override {
        exchange(data, [&](const std::byte* from, size_t r) {
            if (r == 0 && rank() != 0) std::memcpy(data, from, bytes);
        });
    }
    [[noreturn]] void abort(int exit_code) noexcept override { std::_Exit(exit_code); }

private:
    template <class Copy>
    void exchange(const void* mine, Copy copy) {
        table_.places[static_cast<size_t>(rank())] = static_cast<const std::byte*>(mine);
        table_.meet();
        for (size_t r = 0; r < table_.places.size(); ++r) copy(table_.places[r], r);
        table_.meet();  // nobody changes its data before all have read it
    }

    Table& table_;
};

// Runs body on that many ranks. The first exception of any is thrown here.
inline void on_ranks(int size, const std::function<void(Ranks&)>& body) {
    ThreadRanks::Table table(size);
    std::vector<std::exception_ptr> errors(static_cast<size_t>(size));
    std::vector<std::thread> threads;
    for (int r = 0; r < size; ++r)
        threads.emplace_back([&, r] {
            try {
                ThreadRanks ranks(table, r);
                body(ranks);
            } catch (const RankLost&) {
            } catch (...) {
                errors[static_cast<size_t>(r)] = std::current_exception();
                table.fail();
            }
        });
    for (std::thread& t : threads) t.join();
    for (const std::exception_ptr& e : errors)
        if (e) std::rethrow_exception(e);
}

}  // namespace jem
