"""Differential privacy of a secret sum: devices add integer noise before they mask, and the server sees only the noisy total.

    clip        bounds one device's vector before and after it is rounded to whole levels, so that the sensitivity is enforced
    noise       draws Skellam noise (each device a share) and discrete Gaussian noise (the server, alone) from a keystream
    events      says what was drawn, as data
    accountant  what events cost together, as epsilon at a delta, and the least noise that a budget allows
    ledger      what a data epoch has spent, and whether it may spend once more

What is protected is one device: two inputs are neighbours if one device's whole vector is zero in one of them. That it took part is
no secret. Every number that depends on data must lie within the clipped and noised vector; what travels beside it (exact weights,
metrics) is outside this promise. A later vector must not depend on the noise of an earlier one: error feedback stops before it.

Nothing here reads a clock, a file or a random generator; randomness is a keystream handed in.
"""
