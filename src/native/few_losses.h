// Cross-entropy to one index of rows of a few elements, a number known to the compiler: laid side by side, with the arithmetic of other
// short rows, bit by bit.
#pragma once
#include "few_logs.h"
#include "losses.h"

namespace {

// Of so many elements, and rows at a time.
template <class T>
constexpr ptrdiff_t most_few_losses = vector_size == 64 ? 15 : sizeof(T) == 4 ? 5 : 7;
constexpr ptrdiff_t fewest_few_losses = 32;

template <class T>
bool are_few_losses(const Rows& r) {
    const Losses& asked = *r.losses;
    return r.n >= 2 && r.n <= most_few_losses<T> && r.count >= fewest_few_losses && asked.index && asked.spread == 0 && asked.z_loss == 0;
}

[[gnu::always_inline]] inline void put(double& high, double& low, Pair sum) { high = sum.high, low = sum.low; }

template <class T>
[[gnu::always_inline]] inline void put(T& up, T& sign, T& high, T& low, Raised<T> by) {
    up = by.up, sign = by.sign, high = by.high, low = by.low;
}

// Of tame rows, relative to their targets.
template <class T>
struct alignas(64) FewLosses {
    static constexpr ptrdiff_t width = few_rows_width;
    static constexpr bool has_tails = sizeof(T) == 8;
    using Bits = typename Format<T>::Bits;

    T e[most_few_losses<T> * width], tail[most_few_losses<T> * width];  // the elements, then their powers, then the gradient
    Bits target[width];
    double weight[width];  // of the target
    double power[width], power_tail[width], others[width], others_low[width], sum[width], sum_low[width];
    double loss[width], at_target[width];
    T up[width], sign[width], high[width], low[width];

    // The powers, and their sums, in four parts, see in_turn.
    template <ptrdiff_t n>
    void sum_up(ptrdiff_t count) {
        const Rate<T> rate(1);
#pragma omp simd
        for (ptrdiff_t i = 0; i < count; ++i) {
            double all[4] = {}, all_low[4] = {}, rest[4] = {}, rest_low[4] = {};
            T its_power = 0, its_tail = 0;
#pragma GCC unroll 16
            for (ptrdiff_t j = 0; j < n; ++j) {
                T value, value_tail;
                put(value, value_tail, ::power<LossResult<T>>(e[j * width + i], rate));
                e[j * width + i] = value;
                if constexpr (has_tails) tail[j * width + i] = value_tail;
                else value_tail = 0;
                bool is_target = target[i] == static_cast<Bits>(j);
                its_power = is_target ? value : its_power, its_tail = is_target ? value_tail : its_tail;
                add_term<T, double>(all[j % 4], all_low[j % 4], value, value_tail);
                add_term<T, double>(rest[j % 4], rest_low[j % 4], is_target ? 0 : value, is_target ? 0 : value_tail);
            }
            add_term<T>(all[0], all_low[0], all[2], all_low[2]);
            add_term<T>(all[1], all_low[1], all[3], all_low[3]);
            add_term<T>(all[0], all_low[0], all[1], all_low[1]);
            add_term<T>(rest[0], rest_low[0], rest[2], rest_low[2]);
            add_term<T>(rest[1], rest_low[1], rest[3], rest_low[3]);
            add_term<T>(rest[0], rest_low[0], rest[1], rest_low[1]);
            sum[i] = all[0], sum_low[i] = all_low[0], others[i] = rest[0], others_low[i] = rest_low[0];
            power[i] = its_power, power_tail[i] = its_tail;
        }
    }

    // The losses, and what the gradient is made of.
    void conclude(ptrdiff_t count, double kept, double factor) {
#pragma omp simd
        for (ptrdiff_t i = 0; i < count; ++i) {
            double rest, rest_low, scale_high, scale_low;
            put(rest, rest_low, without<T>(Pair{sum[i], sum_low[i]}, Power<double>{power[i], power_tail[i]}));
            bool is_sure = is_nearly_all<T>(power[i], rest);
            rest = is_sure ? others[i] : rest, rest_low = is_sure ? others_low[i] : rest_low;
            put(loss[i], scale_high, scale_low, at_target[i],
                outcome<T>(Summed{0, {sum[i], sum_low[i]}, {rest, rest_low}, {power[i], power_tail[i]}, {}, 0, weight[i], {power[i], power_tail[i]}},
                           kept, 0, 0, factor, true));
            put(up[i], sign[i], high[i], low[i], Raised<T>(Pair{scale_high, scale_low}));
        }
    }

    template <ptrdiff_t n>
    void differentiate(ptrdiff_t count) {
#pragma omp simd
        for (ptrdiff_t i = 0; i < count; ++i) {
#pragma GCC unroll 16
            for (ptrdiff_t j = 0; j < n; ++j) {
                T value = product(Power<T>{e[j * width + i], has_tails ? tail[j * width + i] : 0}, high[i], low[i]);
                T other = std::copysign(lowered(value, up[i]), sign[i]);
                e[j * width + i] = target[i] == static_cast<Bits>(j) ? static_cast<T>(at_target[i]) : other;
            }
        }
    }
};

}  // namespace
