"""Attention units, their insertion into nets, their costs and their fused form.

In: a `ModelSpec`, or any `nn.Module` with an `SESpec`. Out: the net with units at named sites.
"""
