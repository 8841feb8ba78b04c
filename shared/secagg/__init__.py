"""Secure aggregation: a server learns the sum of its clients' vectors and nothing else. Sans-IO: values in, values out.

The protocol is Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017), with
signed keys:

    KEYS      each client advertises two fresh X25519 keys, signed by its device
    SHARES    each deals Shamir shares of its mask key and its self-mask seed to its neighbours, sealed for each
    MASKED    each sends its vector plus pairwise masks (which cancel) plus a self-mask, modulo 2^32
    UNMASKED  for each peer, a client reveals one share: of the seed if the peer was counted, of the key if it dropped

`client` and `server` are the two roles, `states` their transition tables, `terms` what a round agrees on, `messages`
what they say (`fields`: flat), `quantize` how floats become words whose sum cannot wrap, `graph` who masks with whom,
and `keys`, `shamir`, `masks` the primitives. Randomness is an argument: `entropy(n)` returns n fresh bytes,
`os.urandom` in production. Nothing here reads a clock, a socket or a file.
"""
