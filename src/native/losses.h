// Cross-entropy of a row and its gradient, from the logits: sum(a * -log(p)) + z * W * logsumexp^2, where a is what the target
// asks of each class, a = weight * (kept * q + spread), and W the weight of the row.
#pragma once
#include <cstdint>

#include "products.h"

namespace {

// What takes the place of float32 as the type of a result that may err by a few units in the last place: powers have a shorter
// polynomial, and no tails.
struct Rough {};

template <>
struct Format<Rough> {
    // (2^r - 1) / r on [-1/2, 1/2]: relative error of 1 + r q(r) below 0.04 * 2^-24
    static constexpr double q[] = {0.6931472028550819,   0.24022647913626408,   0.055503324711005636,
                                   0.009618437357844595, 0.0013398874422093712, 0.00015353361880618074};
};

template <class T>
using LossResult = std::conditional_t<sizeof(T) == 4, Rough, T>;

// The largest element of a row, and the sum of its powers: exp(x) / 2^K, K as `shift` has it.
template <class T>
struct RowSum {
    T max;
    Shift<T> shift = Shift<T>::none();
    Pair sum;
    bool is_stored = true;  // the powers are in y

    Power<T> power_of(T x, Rate<T> rate) const { return power<LossResult<T>>(x, shift, rate); }
};

// The powers are stored in y, if there is one, of float64 with their tails, and if the row is tame. False where there is no finite
// maximum.
template <class T>
bool sum_row(const T* x, T* y, T* tails, ptrdiff_t n, Rate<T> rate, int threads, RowSum<T>& row) {
    if (x != y) {
        Sum<T> tame = tame_sum<true, LossResult<T>>(x, y, tails, n, rate, threads);
        row.max = tame.largest, row.sum = tame.sum;
        if (tame.tame) return true;
    }
    row.max = maximum(x, n, threads);
    row.shift = Shift<T>(row.max, rate);
    row.is_stored = sizeof(T) == 4;
    T* e = row.is_stored ? y : nullptr;
    if (std::isfinite(row.max)) row.sum = sum_of_powers<ALL, LossResult<T>>(x, e, n, row.max, row.shift, rate, threads);
    return std::isfinite(row.max);
}

// What follows of a sum, as a pair, is for results of T: for float32 it is in plain double.
template <class T>
[[gnu::always_inline]] inline Pair plus(Pair sum, double high, double low) {
    if constexpr (sizeof(T) == 4) return {sum.high + high, 0};
    accumulate(sum.high, sum.low, high, low);
    double total = sum.high + sum.low;
    return {total, (sum.high - total) + sum.low};
}

template <class T>
[[gnu::always_inline]] inline Pair times(Pair a, Pair b) {
    double high = a.high * b.high;
    if constexpr (sizeof(T) == 4) return {high, 0};
    return {high, fma(a.high, b.high, -high) + (a.high * b.low + a.low * b.high)};
}

// A sum without one of its terms.
template <class T, class Work>
[[gnu::always_inline]] inline Pair without(Pair sum, Power<Work> term) {
    return plus<T>(sum, -static_cast<double>(term.value), -static_cast<double>(term.tail));
}

// The sum of the stored powers but for the largest.
inline Pair sum_of_smaller(const float* e, ptrdiff_t n, float largest) {
    Lanes<float> sums;
    float none[block] = {}, some[block];
    for (ptrdiff_t i = 0; i < n; i += block) {
        ptrdiff_t length = std::min(block, n - i);
#pragma omp simd
        for (ptrdiff_t j = 0; j < length; ++j) some[j] = e[i + j] == largest ? 0 : e[i + j];
        sums.add(some, none, length);
    }
    return sums.total();
}

// Whether the largest power has so much of the sum that this has lost the others.
template <class T>
[[gnu::always_inline]] inline bool is_nearly_all(double largest, double others) {
    return !(others >= (sizeof(T) == 4 ? 0x1p-18 : 0x1p-40) * largest);
}

// The sum of the powers of all elements but the largest.
template <class T>
Pair sum_of_others(const T* x, const T* y, ptrdiff_t n, const RowSum<T>& row, Rate<T> rate, int threads) {
    Power<T> largest = row.power_of(row.max, rate);
    Pair others = without<T>(row.sum, largest);
    if (!is_nearly_all<T>(largest.value, others.high)) return others;
    if constexpr (sizeof(T) == 8) {
        T* none = nullptr;
        return sum_of_powers<SMALLER, T>(x, none, n, row.max, row.shift, rate, threads);
    } else {
        return sum_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
            if (y) return sum_of_smaller(y + from, length, largest.value);
            float e[chunk];
            sum_of_powers<ALL, Rough>(x + from, e, length, row.max, row.shift, rate, 1);
            return sum_of_smaller(e, length, largest.value);
        });
    }
}

// What a row's target asks of class i, a = weight * (kept * q + spread); of `index` it asks weight * kept more.
template <class T>
struct Target {
    int64_t index;  // negative: there is none
    const T *q, *weight;  // nullptr: 0 all along; 1 all along
    double kept, spread, z_loss, factor;  // factor: of the gradient

    bool is_one_hot() const { return !q && spread == 0; }
    bool is_balanced() const { return q && z_loss == 0; }  // see balance
};

template <class T>
[[gnu::always_inline]] inline double weight_of(const T* weight, ptrdiff_t i) {
    return weight ? weight[i] : 1;
}

// The sums of a and of a * (m - x), which is 0 where a is.
struct Asked {
    Pair all{0, 0}, distance{0, 0};
};

// visit(with_q, with_weight), as constants.
template <class T, class Visit>
[[gnu::always_inline]] inline auto by_kind(const Target<T>& target, Visit visit) {
    using Yes = std::true_type;
    using No = std::false_type;
    if (target.q) return target.weight ? visit(Yes(), Yes()) : visit(Yes(), No());
    return target.weight && target.spread != 0 ? visit(No(), Yes()) : visit(No(), No());
}

// What is asked of class i, but for the index.
template <bool with_q, bool with_weight, class T, class Work>
[[gnu::always_inline]] inline Work asked(const T* q, const T* weight, ptrdiff_t i, Work kept, Work spread) {
    Work a = with_q ? fma(kept, static_cast<Work>(q[i]), spread) : spread;
    return with_weight ? a * weight[i] : a;
}

template <class T>
Asked asked_of_chunk(const T* x, ptrdiff_t n, T m, const Target<T>& target, ptrdiff_t from) {
    return by_kind(target, [=](auto with_q, auto with_weight) {
        const T *xs = x + from, *q = target.q + (with_q ? from : 0), *weight = target.weight + (with_weight ? from : 0);
        double kept = target.kept, spread = target.spread;
        auto a = [=](ptrdiff_t i) { return asked<with_q(), with_weight()>(q, weight, i, kept, spread); };
        Asked sums;
        sums.all = sum_of<T>(n, [=](ptrdiff_t i) { return Term<T>(a(i), 1); });
        sums.distance = sum_of<T>(n, [=](ptrdiff_t i) {
            double asked = a(i), d = static_cast<double>(m) - xs[i];
            return Term<T>(asked, asked == 0 ? 0 : d);
        });
        return sums;
    });
}

template <class T>
Asked asked_of(const T* x, ptrdiff_t n, T m, const Target<T>& target, int threads) {
    Asked sums;
    if (!target.q && target.spread == 0) return sums;
    if (n <= chunk) return asked_of_chunk(x, n, m, target, 0);
    add_chunks(n, threads,
        [=](ptrdiff_t from, ptrdiff_t length) { return asked_of_chunk(x, length, m, target, from); },
        [&](const Asked& part) {
            accumulate(sums.all.high, sums.all.low, part.all.high, part.all.low);
            accumulate(sums.distance.high, sums.distance.low, part.distance.high, part.distance.low);
        });
    return sums;
}

// (power * scale - a) * factor: of the gradient, an element. The terms may nearly cancel; what rounding takes from them is of the
// size of the result, so that the elements of a row sum to zero.
template <class T>
[[gnu::always_inline]] inline double gradient_of(Power<T> p, Pair scale, double a, double factor) {
    double difference = fma(static_cast<double>(p.value), scale.high, -a);
    if constexpr (sizeof(T) == 4) return difference * factor;
    else return (difference + fma(p.value, scale.low, p.tail * scale.high)) * factor;
}

template <class T>
[[gnu::always_inline]] inline Power<T> power_at(const T* e, const T* tail, ptrdiff_t i) {
    return {e[i], sizeof(T) == 8 ? tail[i] : 0};
}

template <bool with_q, bool with_weight, class T>
[[gnu::always_inline]] inline void gradient_loop(const T* e, const T* tail, const T* q, const T* weight, T* y, ptrdiff_t n, Pair scale,
                                                 double kept, double spread, double factor) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i)
        y[i] = static_cast<T>(
            gradient_of(power_at(e, tail, i), scale, asked<with_q, with_weight>(q, weight, i, kept, spread), factor));
}

// The powers times a scale of any size.
template <class T>
[[gnu::always_inline]] inline void scale_loop(const T* e, const T* tail, T* y, ptrdiff_t n, Pair scale) {
    const Raised<T> by(scale);
    if (by.none_is_subnormal) {
        const T down = by.sign / by.up;
#pragma omp simd
        for (ptrdiff_t i = 0; i < n; ++i) y[i] = product(power_at(e, tail, i), by.high, by.low) * down;
    } else {
#pragma omp simd
        for (ptrdiff_t i = 0; i < n; ++i) y[i] = std::copysign(lowered(product(power_at(e, tail, i), by.high, by.low), by.up), by.sign);
    }
}

// The gradient of `length` elements, from `from` on, from their powers, without tails in float32; but for the index.
template <class T>
[[gnu::always_inline]] inline void gradient(const T* e, const T* tail, T* y, ptrdiff_t from, ptrdiff_t length,
                                            const Target<T>& target, Pair scale) {
    if (target.is_one_hot()) return scale_loop(e, tail, y, length, scale);
    by_kind(target, [=](auto with_q, auto with_weight) {
        const T *q = target.q + (with_q ? from : 0), *weight = target.weight + (with_weight ? from : 0);
        gradient_loop<with_q(), with_weight()>(e, tail, q, weight, y, length, scale, target.kept, target.spread, target.factor);
    });
}

inline void powers_of(const double* x, double* e, double* tail, ptrdiff_t n, Shift<double> shift, Rate<double> rate) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) put(e[i], tail[i], power<double>(x[i], shift, rate));
}

// Powers that are not stored are computed again.
template <class T>
void gradient_row(const T* x, const T* tails, T* y, ptrdiff_t n, const RowSum<T>& row, Rate<T> rate, const Target<T>& target,
                  Pair scale, int threads) {
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        if (row.is_stored) return gradient<T>(y + from, tails ? tails + from : tails, y + from, from, length, target, scale);
        if constexpr (sizeof(T) == 8) {
            T e[block], tail[block];
            for (ptrdiff_t i = from; i < from + length; i += block) {
                ptrdiff_t some = std::min(block, from + length - i);
                powers_of(x + i, e, tail, some, row.shift, rate);
                gradient<T>(e, tail, y + i, i, some, target, scale);
            }
        }
    });
}

// The elements of a gradient sum to zero. Where their roundings add up to more than the largest may show, and where p is nearly 1,
// so that p - q has lost its digits, the element k of the largest p makes up for the sum.
template <class T>
void balance(T* y, ptrdiff_t n, ptrdiff_t k) {
    Magnitude<T> farthest = 0;
#pragma omp simd reduction(max : farthest)
    for (ptrdiff_t i = 0; i < n; ++i) {
        Magnitude<T> far = magnitude(y[i]);
        farthest = far > farthest ? far : farthest;
    }
    auto sum = [](const T* y, ptrdiff_t n) { return sum_of<T>(n, [=](ptrdiff_t i) { return Term<T>(y[i], 1); }); };
    Pair before = sum(y, k), after = sum(y + k + 1, n - k - 1);
    accumulate(before.high, before.low, after.high, after.low);
    double others = rounded(before);
    double unit = static_cast<double>(std::bit_cast<T>(farthest + 1)) - std::bit_cast<T>(farthest);
    if (std::fabs(others + y[k]) > 2 * unit) y[k] = static_cast<T>(-others);
}

// What the loss of a row is made of, and its gradient: the sums of its powers and of those but for the reference, the element that
// all is relative to; of what is asked, and what is known of the target's index (where there is none: the reference, 1, no power).
struct Summed {
    double reference;
    Pair sum, others;
    Power<double> of_reference;
    Asked asked;
    double x, weight;
    Power<double> power;
};

// The loss, what multiplies the powers in the gradient (also the gradient's factor, where the target is one-hot), and the gradient
// at the index.
struct Outcome {
    double loss, scale_high, scale_low, at_index;
};

// Without branches, so that a loop over rows vectorises.
template <class T>
[[gnu::always_inline]] inline Outcome outcome(Summed row, double kept, double spread, double z_loss, double factor, bool one_hot) {
    double scale_factor = one_hot ? factor : 1, sure_from = one_hot ? -1 : 0.5;
    Pair log, by;
    if constexpr (sizeof(T) == 4) {
        by = {1 / row.sum.high, 0};
        log = {log1p_of_quotient(row.others.high, row.of_reference.value), 0};
    } else {
        by = reciprocal(row.sum);
        log = log_of<T>(row.others, 1, row.of_reference);
    }
    double at_index = row.weight * kept, spread_at_index = row.weight * spread;
    Pair asked = plus<T>(row.asked.all, at_index, 0);
    double all = rounded(asked), distance = at_index == 0 ? 0 : at_index * (row.reference - row.x);
    double infinite = row.asked.distance.high + distance;
    Pair loss = plus<T>(plus<T>(row.asked.distance, distance, 0), all * log.high, all * log.low);
    double logsumexp = row.reference + rounded(log), z = z_loss == 0 ? 0 : z_loss * row.weight * logsumexp;
    Pair scale = times<T>(by, plus<T>(asked, 2 * z, 0));
    scale = times<T>(scale, {scale_factor, 0});
    // at the index all * p - a; above 1/2, what is asked of the others less all * (1 - p), 1 - p being their sum
    Pair p = times<T>(by, {row.power.value, row.power.tail}), but_index = without<T>(row.sum, row.power);
    Pair less = times<T>(by, row.x == row.reference ? row.others : but_index), all_less = times<T>(asked, less);
    Pair asked_of_others = plus<T>(row.asked.all, -spread_at_index, 0);
    double sure = rounded(plus<T>(asked_of_others, -all_less.high, -all_less.low));
    double unsure = rounded(plus<T>(plus<T>(times<T>(asked, p), -at_index, 0), -spread_at_index, 0));
    double here = p.high > sure_from ? sure : unsure;
    return {(infinite < unknown ? rounded(loss) : infinite) + z * logsumexp, scale.high, scale.low,
            (here + 2 * z * p.high) * factor};
}

[[gnu::always_inline]] inline void put(double& loss, double& scale_high, double& scale_low, double& at_index, Outcome o) {
    loss = o.loss, scale_high = o.scale_high, scale_low = o.scale_low, at_index = o.at_index;
}

// The loss of a row, and, with y, its gradient; false where the row has no finite maximum.
template <class T>
bool long_loss(const T* x, T* y, ptrdiff_t n, const Target<T>& target, int threads, double& loss) {
    constexpr bool with_tails = sizeof(T) == 8;
    Rate<T> rate(1);
    bool has_index = target.index >= 0, overwrites = !with_tails && x == y, stores = !with_tails || (x != y && n <= chunk);
    T x_t = has_index ? x[target.index] : 0, tails[with_tails ? chunk : 1];
    ptrdiff_t k = y && target.is_balanced() ? largest(x, n) : 0;
    RowSum<T> row;
    Asked asked;
    if (overwrites) asked = asked_of(x, n, maximum(x, n, threads), target, threads);
    if (!sum_row(x, stores ? y : nullptr, with_tails && stores ? tails : nullptr, n, rate, threads, row)) return false;
    if (!stores) row.is_stored = false;
    if (!overwrites) asked = asked_of(x, n, row.max, target, threads);
    Power<T> top = row.power_of(row.max, rate), p = row.power_of(x_t, rate);
    Summed summed{row.max, row.sum, sum_of_others(x, y, n, row, rate, threads), {top.value, top.tail}, asked, row.max, 1, {0, 0}};
    if (has_index) summed.x = x_t, summed.weight = weight_of(target.weight, target.index), summed.power = {p.value, p.tail};
    Outcome result = outcome<T>(summed, has_index ? target.kept : 0, target.spread, target.z_loss, target.factor, target.is_one_hot());
    loss = result.loss;
    if (!y) return true;
    gradient_row(x, with_tails ? tails : nullptr, y, n, row, rate, target, {result.scale_high, result.scale_low}, threads);
    if (has_index) y[target.index] = static_cast<T>(result.at_index);
    if (target.is_balanced()) balance(y, n, k);
    return true;
}

}  // namespace
