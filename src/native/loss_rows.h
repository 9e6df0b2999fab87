// Losses of ranges of rows: long ones one by one, short ones a block at a time.
#pragma once
#include "few_losses.h"
#include "kernels.h"
#include "losses.h"

namespace {

// Rows, their losses, and, if asked for, the gradients of these.
template <class T>
struct LossRows {
    const T* x;
    T* y;
    ptrdiff_t n;
    int threads;
    const T* q;
    const int64_t* index;
    double* loss;
    const Losses& options;
    bool invalid = false;

    LossRows(const Rows& r)
        : x(static_cast<const T*>(r.x) + r.first * r.n),
          y(r.y ? static_cast<T*>(r.y) + r.first * r.n : nullptr),
          n(r.n),
          threads(r.threads),
          q(r.v ? static_cast<const T*>(r.v) + r.first * r.n : nullptr),
          index(r.losses->index ? r.losses->index + r.first : nullptr),
          loss(r.losses->loss + r.first),
          options(*r.losses) {}

    void long_rows(ptrdiff_t count) {
        for (ptrdiff_t r = 0; r < count; ++r)
            if (!is_ignored(r) && !long_loss(x + r * n, y ? y + r * n : y, n, target(r), threads, loss[r])) has_no_maximum(r);
    }

    // A block at a time.
    template <bool is_short>
    void short_rows(ptrdiff_t count) {
        ShortRows<T, is_short, T, LossResult<T>> powers;
        for (ptrdiff_t first = 0, some; first < count; first += some) {
            some = std::min(count - first, block / n);
            some_rows(first, some, powers);
        }
    }

    // Of a few elements: side by side where that goes.
    void few_rows(ptrdiff_t count) {
        ShortRows<T, true, T, LossResult<T>> powers;
        FewLosses<T> few;
        for (ptrdiff_t first = 0, some; first < count; first += some) {
            some = std::min(count - first, few.width);
            if (some >= fewest_few_losses && few_losses(first, some, few)) continue;
            some = std::min(some, block / n);
            some_rows(first, some, powers);
        }
    }

private:
    static constexpr bool has_tails = sizeof(T) == 8;
    using Bits = typename Format<T>::Bits;

    Target<T> target(ptrdiff_t r) const {
        return {q ? -1 : index[r], q ? q + r * n : q, static_cast<const T*>(options.weight), options.kept, options.spread,
                options.z_loss, options.factor};
    }

    bool is_ignored(ptrdiff_t r) {
        if (q || index[r] != options.ignored) return false;
        loss[r] = 0;
        if (y) std::fill_n(y + r * n, n, T(0));
        return true;
    }

    void has_no_maximum(ptrdiff_t r) {
        constexpr T nan = std::numeric_limits<T>::quiet_NaN();
        invalid |= std::none_of(x + r * n, x + r * n + n, [](T v) { return std::isnan(v); });
        loss[r] = nan;
        if (y) std::fill_n(y + r * n, n, nan);
    }

    // False, and nothing written, where a row is not tame.
    bool few_losses(ptrdiff_t first, ptrdiff_t some, FewLosses<T>& few) {
        if (farthest(x + first * n, some * n) > magnitude(Rate<T>(1).tame)) return false;
        fetch<false>(x + (first + some) * n, some * n);
        if (y) fetch<true>(y + (first + some) * n, some * n);
        ptrdiff_t whole = side_by_side(x + first * n, few.e, n, some);
        for (ptrdiff_t r = 0; r < whole; ++r) {
            int64_t t = r >= some || index[first + r] == options.ignored ? 0 : index[first + r];  // ignored: any
            few.target[r] = static_cast<Bits>(t), few.weight[r] = weight_of(static_cast<const T*>(options.weight), t);
        }
        with_constant<most_few_losses<T>>(n, [&](auto n) { few.template sum_up<n>(whole); });
        few.conclude(whole, options.kept, options.factor);
        std::copy_n(few.loss, some, loss + first);
        if (y) {
            with_constant<most_few_losses<T>>(n, [&](auto n) { few.template differentiate<n>(whole); });
            to_rows(few.e, few.width, y + first * n, n, some);
        }
        for (ptrdiff_t r = 0; r < some; ++r) is_ignored(first + r);
        return true;
    }

    // Where one of them has no finite maximum, less of them.
    template <class Powers>
    void some_rows(ptrdiff_t first, ptrdiff_t some, Powers& powers) {
        Rate<T> rate(1);
        const T *from = x + first * n, *to = y ? y + first * n : y;
        if (powers.tame_powers(from, some * n, rate, to)) return short_losses(first, some, powers, rate, true);
        if (powers.template wild_powers<true>(from, 0, some, n, rate, to)) return short_losses(first, some, powers, rate, false);
        if (some > 1)
            for (ptrdiff_t i = 0, less = (some + 7) / 8; i < some; i += less) some_rows(first + i, std::min(less, some - i), powers);
        else if (!is_ignored(first)) has_no_maximum(first);
    }

    // Of some rows whose powers are known. All is relative to the maximum, or, where one index is all that is asked and the row
    // tame, so that its power is a normal number, to that.
    template <class Powers>
    void short_losses(ptrdiff_t first, ptrdiff_t some, const Powers& powers, Rate<T> rate, bool all_tame) {
        if (!q && options.spread == 0 && options.z_loss == 0) losses_of_kind<true>(first, some, powers, rate, all_tame);
        else losses_of_kind<false>(first, some, powers, rate, all_tame);
    }

    // Plain: to one index, without z_loss.
    template <bool plain, class Powers>
    void losses_of_kind(ptrdiff_t first, ptrdiff_t some, const Powers& powers, Rate<T> rate, bool all_tame) {
        alignas(64) double reference[block], high[block], low[block], others_high[block], others_low[block], of_reference[block], its_tail[block];
        alignas(64) double all[block], all_low[block], distance[block], distance_low[block], x_t[block], weight[block], power_t[block], tail_t[block];
        alignas(64) double scale_high[block], scale_low[block], at_index[block];
        const bool has_q = !plain && q, one_hot = plain || (!q && options.spread == 0), all_refer = one_hot && all_tame;
        auto weights = static_cast<const T*>(options.weight);
        for (ptrdiff_t r = 0; r < some; ++r) {
            if (!all_refer) reference[r] = all_tame ? powers.maximum(x + (first + r) * n, n) : powers.max[r];
            Pair sum = powers.sum(r * n, n);
            high[r] = sum.high, low[r] = sum.low;
            if (!plain) all[r] = all_low[r] = distance[r] = distance_low[r] = 0;
        }
        for (ptrdiff_t r = 0; r < some; ++r) {
            ptrdiff_t t = has_q || index[first + r] == options.ignored ? 0 : index[first + r], at = r * n + t;  // ignored: any
            x_t[r] = has_q ? reference[r] : x[first * n + at];
            bool refers_to_index = all_refer || (one_hot && powers.is_tame[r]);
            if (refers_to_index) reference[r] = x_t[r];
            weight[r] = has_q ? 1 : weight_of(weights, t);
            power_t[r] = has_q ? 0 : powers.e[at];
            tail_t[r] = has_q || !has_tails ? 0 : powers.tail[at];
            if (all_refer) of_reference[r] = power_t[r], its_tail[r] = tail_t[r];
        }
        if (!all_refer && all_tame) {
#pragma omp simd
            for (ptrdiff_t r = 0; r < some; ++r) put(of_reference[r], its_tail[r], wide_power(power<LossResult<T>>(static_cast<T>(reference[r]), rate)));
        } else if (!all_refer) {
#pragma omp simd
            for (ptrdiff_t r = 0; r < some; ++r) put(of_reference[r], its_tail[r], wide_power(power_of<LossResult<T>, ALL>(static_cast<T>(reference[r]), powers.shift, r, rate)));
        }
        int64_t sure = 0;
#pragma omp simd reduction(| : sure)
        for (ptrdiff_t r = 0; r < some; ++r) {
            put(others_high[r], others_low[r], without_reference(high[r], low[r], of_reference[r], its_tail[r]));
            sure |= is_nearly_all<T>(of_reference[r], others_high[r]) ? 1 : 0;
        }
        for (ptrdiff_t r = 0; r < some && (sure || !one_hot); ++r) {
            if (!one_hot) {
                Asked asked = asked_of(x + (first + r) * n, n, static_cast<T>(reference[r]), target(first + r), 1);
                all[r] = asked.all.high, all_low[r] = asked.all.low;
                distance[r] = asked.distance.high, distance_low[r] = asked.distance.low;
            }
            if (!is_nearly_all<T>(of_reference[r], others_high[r])) continue;
            Pair others = powers.others(r * n, x + (first + r) * n, n, static_cast<T>(reference[r]));
            others_high[r] = others.high, others_low[r] = others.low;
        }
        double kept = has_q ? 0 : options.kept, spread = plain ? 0 : options.spread, z_loss = plain ? 0 : options.z_loss;
        double factor = options.factor;
        double* to = loss + first;
#pragma omp simd
        for (ptrdiff_t r = 0; r < some; ++r) {
            put(to[r], scale_high[r], scale_low[r], at_index[r],
                outcome<T>(Summed{reference[r], {high[r], low[r]}, {others_high[r], others_low[r]}, {of_reference[r], its_tail[r]},
                                  plain ? Asked{} : Asked{{all[r], all_low[r]}, {distance[r], distance_low[r]}}, x_t[r], weight[r],
                                  {power_t[r], tail_t[r]}},
                           kept, spread, z_loss, factor, one_hot));
        }
        for (ptrdiff_t r = 0; r < some; ++r) {
            if (is_ignored(first + r) || !y) continue;
            T* to = y + (first + r) * n;
            Target<T> target = this->target(first + r);
            ptrdiff_t k = target.is_balanced() ? ::largest(x + (first + r) * n, n) : 0;  // y may be x
            gradient<T>(powers.e + r * n, powers.tail + r * n, to, 0, n, target, {scale_high[r], scale_low[r]});
            if (!q) to[target.index] = static_cast<T>(at_index[r]);
            if (target.is_balanced()) balance(to, n, k);
        }
    }

    [[gnu::always_inline]] static Power<double> wide_power(Power<T> p) { return {p.value, p.tail}; }

    [[gnu::always_inline]] static Power<double> without_reference(double high, double low, double power, double tail) {
        Pair others = without<T>(Pair{high, low}, Power<double>{power, tail});
        return {others.high, others.low};
    }
};

}  // namespace
