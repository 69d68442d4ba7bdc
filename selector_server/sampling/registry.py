"""Policies by name: the built-in ones, and those that installed packages offer.

A package adds its own with an entry point, without touching this code:

    [project.entry-points."selector_server.policies"]
    mine = "my_package.policies:Mine"
"""

from importlib.metadata import entry_points

from selector_server.sampling.policies import Independent, Joint, Policy, Uniform

GROUP = "selector_server.policies"


def load_policies() -> dict[str, Policy]:
    """Every policy by its name. Raises ValueError for an entry point that is not a policy or takes another's name."""
    policies: dict[str, Policy] = {policy.name: policy for policy in (Joint(), Independent(), Uniform())}
    for point in entry_points(group=GROUP):
        try:
            policy = point.load()()
        except Exception as error:  # whatever a foreign package raises while it is imported
            raise ValueError(f"policy {point.name} ({point.value}) cannot be loaded: {error!r}") from error
        if not isinstance(policy, Policy):
            raise ValueError(f"policy {point.name} ({point.value}) is a {type(policy).__name__}, not a Policy")
        if policy.name in policies:
            raise ValueError(f"policy {point.name} ({point.value}) has the name of another, {policy.name!r}")
        policies[policy.name] = policy
    return policies
