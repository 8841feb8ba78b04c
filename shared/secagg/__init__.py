"""Secure aggregation: a server learns the sum of its clients' vectors and nothing else. Sans-IO: values in, values out.

The protocol is Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017), on the sparse
graph of Bell et al. (CCS 2020), with signed keys that serve several rounds, and witnesses to who is counted. A group is made:

    KEYS       each client advertises a fresh X25519 key, signed by its device, and promises a coin
    COINS      each tells its coin; all of them draw the graph and the witnesses (not where the graph is complete)
    SHARES     each deals its neighbours Shamir shares of a seed and a recovery key for every round, sealed

and then runs rounds, with secrets that no other round uses:

    MASKED     each sends its vector plus a mask a neighbour (which cancel) plus a mask of its own, modulo 2^m
    CONFIRMED  each is shown who is counted, and the witnesses say so to all others
    UNMASKED   if most witnesses agree, each reveals its own mask, and those with neighbours that are gone
    RECOVERED  for those who fell silent since, their neighbours reveal shares; often this is not needed

`client`, `setup` and `server` are the roles, `states` their transition tables, `terms` what they agree on, `policy` what a device
insists on, `messages` what they say (`fields`: flat), `kept` what a client keeps between messages, `schema` and `quantize` (with
`rotation`) how floats become whole numbers whose sum cannot wrap, `packing` how these lie in words and travel, `graph` who masks
with whom, and `keys`, `shamir`, `masks` the primitives. Randomness is an argument: `entropy(n)` returns n fresh bytes,
`os.urandom` in production.
Nothing here reads a clock, a socket or a file.
"""
