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

    Power<T> power_of(T x, Rate<T> rate) const { return power<LossResult<T>>(x, shift, rate); }
};

// Of float32 the powers are stored in y, if there is one. False where there is no finite maximum.
template <class T>
bool sum_row(const T* x, T* y, ptrdiff_t n, Rate<T> rate, int threads, RowSum<T>& row) {
    if (x != y) {
        TameSum<T, true, LossResult<T>> tame(x, y, n, rate, threads);
        row.max = tame.largest, row.sum = tame.sum;
        if (tame.tame) return true;
    }
    row.max = maximum(x, n, threads);
    row.shift = Shift<T>(row.max, rate);
    if (std::isfinite(row.max)) row.sum = sum_of_powers<NOTHING, LossResult<T>>(x, y, n, row.max, row.shift, rate, threads);
    return std::isfinite(row.max);
}

// A sum without one of its terms.
template <class T>
Pair without(Pair sum, Power<T> term) {
    accumulate(sum.high, sum.low, -static_cast<double>(term.value), -static_cast<double>(term.tail));
    double high = sum.high + sum.low;
    return {high, (sum.high - high) + sum.low};
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

// The sum of the powers of all elements but the largest. Where that has nearly all the weight, their sum with it has lost them.
template <class T>
Pair sum_of_others(const T* x, const T* y, ptrdiff_t n, const RowSum<T>& row, Rate<T> rate, int threads) {
    Power<T> largest = row.power_of(row.max, rate);
    Pair others = without(row.sum, largest);
    if (others.high >= (sizeof(T) == 4 ? 0x1p-18 : 0x1p-40) * largest.value) return others;
    if constexpr (sizeof(T) == 8) {
        T* none = nullptr;
        return sum_of_powers<LARGEST, T>(x, none, n, row.max, row.shift, rate, threads);
    } else {
        return sum_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
            if (y) return sum_of_smaller(y + from, length, largest.value);
            float e[chunk];
            sum_of_powers<NOTHING, Rough>(x + from, e, length, row.max, row.shift, rate);
            return sum_of_smaller(e, length, largest.value);
        });
    }
}

// What a row's target asks of class i, a = weight * (kept * q + spread); of `index` it asks weight * kept more.
template <class T>
struct Target {
    int64_t index;  // negative: there is none
    const T *q, *weight;  // nullptr: 0 all along; 1 all along
    double kept, spread;
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

// power * scale - a: of the gradient, an element.
template <class T>
[[gnu::always_inline]] inline T gradient_of(Power<T> p, Scale<T> scale, T a) {
    return fma(p.value, scale.high, fma(p.value, scale.low, p.tail * scale.high) - a);
}

template <bool with_q, bool with_weight, class T, class Work, class PowerAt>
[[gnu::always_inline]] inline void gradient_loop(T* y, const T* q, const T* weight, ptrdiff_t n, Scale<Work> scale, Work kept,
                                                 Work spread, PowerAt power_at) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i)
        y[i] = static_cast<T>(gradient_of(power_at(i), scale, asked<with_q, with_weight>(q, weight, i, kept, spread)));
}

// The gradient of `length` elements from `from` on, from their powers; but for the index.
template <class Work, class T, class PowerAt>
[[gnu::always_inline]] inline void gradient(T* y, ptrdiff_t from, ptrdiff_t length, const Target<T>& target, double factor,
                                            Pair by, PowerAt power_at) {
    by_kind(target, [=](auto with_q, auto with_weight) {
        const T *q = target.q + (with_q ? from : 0), *weight = target.weight + (with_weight ? from : 0);
        Work kept = static_cast<Work>(factor * target.kept), spread = static_cast<Work>(factor * target.spread);
        gradient_loop<with_q(), with_weight()>(y + from, q, weight, length, Scale<Work>(by), kept, spread, power_at);
    });
}

// Of float32 the powers are in y.
template <class T>
void gradient_row(const T* x, T* y, ptrdiff_t n, const RowSum<T>& row, Rate<T> rate, const Target<T>& target, double factor,
                  Pair by, int threads) {
    Shift<T> shift = row.shift;
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        const T *xs = x + from, *e = y + from;
        gradient<T>(y, from, length, target, factor, by, [=](ptrdiff_t i) {
            if constexpr (sizeof(T) == 4) return Power<T>{e[i], 0};
            else return power<T>(xs[i], shift, rate);
        });
    });
}

inline Pair times(Pair a, double b) {
    double high = a.high * b;
    return {high, fma(a.high, b, -high) + a.low * b};
}

// What is known of a row when its powers are summed: `log` that of `sum` relative to the largest, `others` without that.
struct Summed {
    double max;
    Pair sum, others, log;
};

// The loss of a row; the factor of its powers in the gradient, and what that is at the target's index.
struct Outcome {
    double loss;
    Pair scale;
    double here;
};

// x_t and power_t: of the target's index, where it has one.
template <class T, class Work>
[[gnu::always_inline]] inline Outcome outcome(const Target<T>& target, const Asked& asked, const Summed& row, T x_t,
                                              Power<Work> power_t, double z_loss, double factor) {
    bool has_index = target.index >= 0;
    double w_t = has_index ? weight_of(target.weight, target.index) : 1, a_t = has_index ? w_t * target.kept : 0;
    double all = rounded(asked.all) + a_t;
    Pair loss = asked.distance;
    accumulate(loss.high, loss.low, a_t == 0 ? 0 : a_t * (row.max - x_t), 0);
    accumulate(loss.high, loss.low, all * row.log.high, all * row.log.low);
    if (!std::isfinite(loss.high)) loss.low = 0;
    double logsumexp = row.max + rounded(row.log), z = z_loss == 0 ? 0 : z_loss * w_t * logsumexp;
    Pair by = reciprocal(row.sum);
    Outcome result{rounded(loss) + z * logsumexp, times(by, (all + 2 * z) * factor), 0};
    if (has_index) {  // all * p - a with 1 - p as what it is, the others' sum
        double one_less = rounded(times(by, rounded(x_t == row.max ? row.others : without(row.sum, power_t))));
        double others_asked = rounded(asked.all) - w_t * target.spread;
        result.here = (others_asked + 2 * z * (power_t.value * by.high) - all * one_less) * factor;
    }
    return result;
}

// The loss of a row, and, with y, its gradient times factor; false where the row has no finite maximum.
template <class T>
bool long_loss(const T* x, T* y, ptrdiff_t n, Target<T> target, double z_loss, double factor, int threads, double& loss) {
    Rate<T> rate(1);
    bool overwrites = sizeof(T) == 4 && x == y;
    T x_t = target.index >= 0 ? x[target.index] : 0;
    RowSum<T> row;
    Asked asked;
    if (overwrites) asked = asked_of(x, n, maximum(x, n, threads), target, threads);
    if (!sum_row(x, sizeof(T) == 4 ? y : nullptr, n, rate, threads, row)) return false;
    if (!overwrites) asked = asked_of(x, n, row.max, target, threads);
    Pair others = sum_of_others(x, y, n, row, rate, threads);
    Pair log = log_of<T>(others, 1, row.power_of(row.max, rate));
    Summed summed{row.max, row.sum, others, log};
    Outcome result = outcome(target, asked, summed, target.index >= 0 ? x_t : row.max, row.power_of(x_t, rate), z_loss, factor);
    loss = result.loss;
    if (!y) return true;
    gradient_row(x, y, n, row, rate, target, factor, result.scale, threads);
    if (target.index >= 0) y[target.index] = static_cast<T>(result.here);
    return true;
}

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
            if (!is_ignored(r) &&
                !long_loss(x + r * n, row(y, r * n), n, target(r), options.z_loss, options.factor, threads, loss[r]))
                has_no_maximum(r);
    }

    // A block at a time, in double, if it is tame.
    void short_rows(ptrdiff_t count) {
        ShortRows<T, true> some_rows;
        Rate<double> rate(1);
        double high[block], low[block];
        for (ptrdiff_t first = 0, some; first < count; first += some) {
            some = std::min(count - first, block / n);
            if (some_rows.tame_powers(x + first * n, some * n, rate)) {
                some_rows.sums(x + first * n, some, n);
                std::copy_n(some_rows.high, some, high);
                std::copy_n(some_rows.low, some, low);
                some_rows.logs(x + first * n, some, n, rate);
                for (ptrdiff_t i = 0; i < some; ++i) {
                    Power<double> largest = power<T>(static_cast<double>(some_rows.max[i]), rate);
                    short_loss(first + i, some_rows.e + i * n, some_rows.tail + i * n, some_rows.max[i], largest,
                               {high[i], low[i]}, some_rows.equal[i], {some_rows.high[i], some_rows.low[i]});
                }
                continue;
            }
            for (ptrdiff_t r = first; r < first + some; ++r) {
                T m = short_maximum(x + r * n, n);
                if (!std::isfinite(m)) {
                    if (!is_ignored(r)) has_no_maximum(r);
                    continue;
                }
                Shift<double> shift(m, rate);
                Power<double> largest = power<T>(static_cast<double>(m), shift, rate);
                auto others = some_rows.others_of_row(x + r * n, n, m, shift, rate);
                Pair log = log_of<T>(others.sum, others.equal, largest);
                short_loss(r, some_rows.e, some_rows.tail, m, largest, others.sum, others.equal, log);
            }
        }
    }

private:
    static T* row(T* y, ptrdiff_t at) { return y ? y + at : y; }
    Target<T> target(ptrdiff_t r) const {
        return {q ? -1 : index[r], q ? q + r * n : q, static_cast<const T*>(options.weight), options.kept, options.spread};
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

    void short_loss(ptrdiff_t r, const double* e, const double* tail, T m, Power<double> largest, Pair others, double equal,
                    Pair log) {
        if (is_ignored(r)) return;
        constexpr bool wider = sizeof(T) < sizeof(double);
        Target<T> target = this->target(r);
        const T* x = this->x + r * n;
        accumulate(others.high, others.low, (equal - 1) * largest.value, wider ? 0 : (equal - 1) * largest.tail);
        Pair sum = others;
        accumulate(sum.high, sum.low, largest.value, wider ? 0 : largest.tail);
        ptrdiff_t t = target.index;
        T x_t = t < 0 ? m : x[t];
        Power<double> power_t{t < 0 ? 0 : e[t], t < 0 || wider ? 0 : tail[t]};
        Outcome result = outcome(target, asked_of(x, n, m, target, 1), {m, sum, others, log}, x_t, power_t, options.z_loss,
                                 options.factor);
        loss[r] = result.loss;
        if (!y) return;
        T* y = this->y + r * n;
        gradient<double>(y, 0, n, target, options.factor, result.scale, [=](ptrdiff_t i) {
            return Power<double>{e[i], wider ? 0 : tail[i]};
        });
        if (t >= 0) y[t] = static_cast<T>(result.here);
    }
};

}  // namespace
