"""The nearest of many rows: scaled copies in blocks, one pass of distances, short sorted lists.

Rows lie in blocks of 64, within a block feature by feature: the compiler then works on 8 rows at once, and
each row's sum still runs over the features in order, so that the bits do not depend on it.
"""

import math

import numpy as np

from adaptd.kernels.compile import kernel, subkernel

BLOCK = 64


@subkernel(inline=True)
def scaled_value(value, is_category, mean, scale, limit):
    if is_category:
        # Missing is one more category.
        return np.float32(-1.0) if np.isnan(value) else np.float32(value)
    if np.isnan(value) or scale == 0.0:
        return np.float32(0.0)
    return np.float32(min(max((value - mean) * scale, -limit), limit))


@kernel("void(f8[:,::1], i8, u1[::1], f8[::1], f8[:,::1], f4[:,:,::1])")
def place_all(rows, filled, is_category, limits, scales, scaled):
    for slot in range(filled):
        for j in range(rows.shape[1]):
            scaled[slot // 64, j, slot % 64] = scaled_value(
                rows[slot, j], is_category[j], scales[0, j], scales[1, j], limits[2]
            )


@subkernel
def rescale(rows, filled, is_category, scales):
    """Mean and reciprocal standard deviation of each number over the window."""
    for j in range(rows.shape[1]):
        if is_category[j]:
            continue
        n = 0
        largest = 0.0
        for slot in range(filled):
            if not np.isnan(rows[slot, j]):
                n += 1
                largest = max(largest, abs(rows[slot, j]))
        scales[0, j] = 0.0
        scales[1, j] = 0.0
        # Sums are taken of values divided by the largest one: nothing overflows.
        if n < 2 or largest == 0.0 or largest > 1e300 or largest < 1e-300:
            continue
        mean = 0.0
        for slot in range(filled):
            if not np.isnan(rows[slot, j]):
                mean += rows[slot, j] / largest
        mean /= n
        variance = 0.0
        for slot in range(filled):
            if not np.isnan(rows[slot, j]):
                difference = rows[slot, j] / largest - mean
                variance += difference * difference
        spread = math.sqrt(variance / n)
        # Below this a spread is the rounding of a constant.
        if spread > 1e-12 and spread * largest > 1e-300:
            scales[0, j] = mean * largest
            scales[1, j] = 1.0 / (spread * largest)


@subkernel(inline=True)
def insert(distance, slot, distances, slots):
    """Put a row into the ascending list; of equal distances the first one stays before.

    Each place takes its own, the one before or the new one: without a search the compiler works on many at
    once.
    """
    for place in range(distances.size - 1, 0, -1):
        own, before = distances[place], distances[place - 1]
        mine = slot if own > distance else slots[place]
        slots[place] = slots[place - 1] if before > distance else mine
        distances[place] = max(before, min(own, distance))
    if distances[0] > distance:
        distances[0] = distance
        slots[0] = slot


@subkernel
def nearest(
    query,
    is_category,
    category_distance,
    scaled,
    absent,
    newest,
    visits,
    distances,
    slots,
    found,
    sums,
    near_rows,
):
    """Fill the lists of the nearest rows, ascending; the last one over all rows.

    distances (squared), slots: [parts, wanted]; found: [parts]. visits: blocks of each part, ascending;
    those before the last are the newest rows only. sums, near_rows: scratch [64].
    """
    n_blocks, n_features, _ = scaled.shape
    last = found.size - 1
    wanted = distances.shape[1]
    limit = np.float32(np.inf)
    for part in range(found.size):
        found[part] = 0
    for i in range(wanted):
        distances[last, i] = np.inf
    part = 0
    # From the newest block backwards. Its rows after `newest` are the oldest ones: they come in a last visit.
    for visit in range(n_blocks + 1):
        b = newest // 64 - visit
        if b < 0:
            b += n_blocks
        start = newest % 64 + 1 if visit == n_blocks else 0
        stop = newest % 64 + 1 if visit == 0 else 64
        if visit == visits[part]:
            found[part] = found[last]
            for i in range(found[last]):
                distances[part, i] = distances[last, i]
                slots[part, i] = slots[last, i]
            part += 1
        for r in range(64):
            sums[r] = absent[b, r]
        j = 0
        while j < n_features:
            if j + 4 <= n_features and not np.any(is_category[j : j + 4]):
                # Four at a time: the sums are loaded and stored once, and added to in the same order.
                for r in range(64):
                    first = scaled[b, j, r] - query[j]
                    second = scaled[b, j + 1, r] - query[j + 1]
                    third = scaled[b, j + 2, r] - query[j + 2]
                    fourth = scaled[b, j + 3, r] - query[j + 3]
                    total = sums[r] + first * first
                    total += second * second
                    total += third * third
                    sums[r] = total + fourth * fourth
                j += 4
            else:
                value = query[j]
                if is_category[j]:
                    for r in range(64):
                        sums[r] += category_distance if scaled[b, j, r] != value else np.float32(0.0)
                else:
                    for r in range(64):
                        difference = scaled[b, j, r] - value
                        sums[r] += difference * difference
                j += 1
            if j % 8 == 0 and j < n_features:
                # A partial sum only grows: when all 64 are too far already the rest need not be read.
                near = 0
                for r in range(64):
                    near += sums[r] < limit
                if near == 0:
                    break
        near = 0
        for r in range(64):
            near += sums[r] < limit
        if near == 0:
            continue
        # Which rows these are cannot be foretold: listed first, they cost no wrong guesses.
        hits = 0
        for r in range(start, stop):
            near_rows[hits] = r
            hits += sums[r] < limit
        for h in range(hits):
            r = near_rows[h]
            if sums[r] < limit:
                insert(sums[r], b * 64 + np.int64(r), distances[last], slots[last])
                found[last] = min(found[last] + 1, wanted)
                limit = distances[last, wanted - 1]
