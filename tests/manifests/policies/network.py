"""Who may talk to whom."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from tests.manifests.policies.policy import pod_of, policy
from tests.manifests.rendered import Object, Pod, named, of_kind, pods

METADATA = ("169.254.169.254", "fd00:ec2::254")
INSIDE = ("10.1.2.3", "172.20.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1", "::1", "fd12::1", "::ffff:10.0.0.1")


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector selects these labels."""
    if any(labels.get(name) != value for name, value in selector.get("matchLabels", {}).items()):
        return False
    for term in selector.get("matchExpressions", ()):
        assert term["operator"] == "In", term
        if labels.get(term["key"]) not in term["values"]:
            return False
    return True


def rules(things: list[Object], pod: Pod, direction: str) -> Iterator[Object]:
    """The rules that let something in to a pod (``ingress``), or out of it (``egress``)."""
    for thing in of_kind(things, "NetworkPolicy"):
        if selects(thing["spec"]["podSelector"], pod.labels):
            yield from thing["spec"].get(direction, ())


def reaches(rule: Object, address: str) -> bool:
    """Whether a rule of egress lets a pod reach an address outside of all pods."""
    if not rule.get("to"):
        return True
    target = ip_address(address)
    for peer in rule["to"]:
        block = peer.get("ipBlock", {"cidr": "0.0.0.0/32"})
        holes = (ip_network(hole) for hole in block.get("except", ()))
        if target in ip_network(block["cidr"]) and not any(target in hole for hole in holes):
            return True
    return False


@policy(
    lambda things: things.remove(named(things, "NetworkPolicy", "deny-all")),
    lambda things: named(things, "NetworkPolicy", "deny-all")["spec"].update(egress=[{}]),
    lambda things: named(things, "NetworkPolicy", "deny-all")["spec"].update(policyTypes=["Ingress"]),
)
def nothing_flows_without_a_name(things: list[Object]) -> Iterator[str]:
    deny = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if not any(thing["spec"] == deny for thing in of_kind(things, "NetworkPolicy")):
        yield "no policy denies everything"


@policy(
    lambda things: named(things, "NetworkPolicy", "ray-to-ray")["spec"]["ingress"][0].pop("from"),
    lambda things: named(things, "NetworkPolicy", "to-stores")["spec"]["egress"][0].pop("ports"),
    lambda things: named(things, "NetworkPolicy", "service-to-kv")["spec"]["ingress"][0]["from"].append(
        {"namespaceSelector": {}}
    ),
)
def flows_name_both_ends_and_ports(things: list[Object]) -> Iterator[str]:
    for thing in of_kind(things, "NetworkPolicy"):
        name, spec = thing["metadata"]["name"], thing["spec"]
        for rule in (*spec.get("ingress", ()), *spec.get("egress", ())):
            peers = rule.get("from") or rule.get("to")
            if not peers or any(peer in ({"namespaceSelector": {}}, {"podSelector": {}}) for peer in peers):
                yield f"{name}: anybody"
            if not rule.get("ports") and name != "ray-to-ray":  # Ray chooses its ports
                yield f"{name}: any port"


@policy(
    lambda things: named(things, "NetworkPolicy", "fetchers-to-internet")["spec"]["egress"][0]["to"][0]["ipBlock"][
        "except"
    ].remove("169.254.0.0/16"),
    lambda things: named(things, "NetworkPolicy", "fetchers-to-internet")["spec"]["egress"][0]["to"][1][
        "ipBlock"
    ].update(cidr="::/0"),
    lambda things: named(things, "NetworkPolicy", "head-to-apiserver")["spec"]["egress"][0].pop("to"),
)
def nobody_reaches_the_metadata_address(things: list[Object]) -> Iterator[str]:
    for pod in pods(things):
        for rule in rules(things, pod, "egress"):
            for address in METADATA:
                if reaches(rule, address):
                    yield f"{pod.where}: reaches {address}"


@policy(
    lambda things: named(things, "NetworkPolicy", "fetchers-to-internet")["spec"]["egress"][0]["to"][0]["ipBlock"][
        "except"
    ].remove("10.0.0.0/8"),
    lambda things: pod_of(things, "head").labels.update({"x2l/fetches": "true"}),
)
def who_fetches_urls_reaches_public_addresses_only(things: list[Object]) -> Iterator[str]:
    for pod in pods(things):
        if pod.labels.get("x2l/fetches") != "true":
            continue
        found = list(rules(things, pod, "egress"))
        if not any(reaches(rule, "93.184.215.14") for rule in found):
            yield f"{pod.where}: fetches, and cannot reach the internet"
        for address in INSIDE:
            if any(reaches(rule, address) for rule in found):
                yield f"{pod.where}: reaches {address}"


@policy(
    lambda things: pod_of(things, "answer").labels.update({"x2l/fetches": "true"}),
    lambda things: named(things, "NetworkPolicy", "fetchers-to-internet")["spec"].update(podSelector={}),
)
def only_who_fetches_reaches_the_internet(things: list[Object]) -> Iterator[str]:
    for pod in pods(things):
        if pod.component in ("gateway", "prefill", "model"):
            continue
        if any(reaches(rule, "93.184.215.14") for rule in rules(things, pod, "egress")):
            yield f"{pod.where}: reaches the internet"


@policy(
    lambda things: named(things, "NetworkPolicy", "to-stores")["spec"]["podSelector"]["matchExpressions"][0][
        "values"
    ].remove("janitor"),
    lambda things: named(things, "NetworkPolicy", "service-to-state")["spec"]["ingress"][0]["from"][0]["podSelector"][
        "matchExpressions"
    ][0]["values"].remove("head"),
    lambda things: named(things, "NetworkPolicy", "service-to-kv")["spec"]["ingress"][0]["ports"][0].update(port=6380),
)
def who_uses_a_store_can_reach_it(things: list[Object]) -> Iterator[str]:
    everybody = {pod.component: pod for pod in pods(things)}
    working = ("gateway", "prefill", "answer", "janitor")
    for store, users in {"valkey-state": ("head", *working), "valkey-kv": working}.items():
        for user in users:
            out = _meet(rules(things, everybody[user], "egress"), "to", everybody[store].labels)
            into = _meet(rules(things, everybody[store], "ingress"), "from", everybody[user].labels)
            if not (out and into):
                yield f"{user}: cannot reach {store}"


def _meet(found: Iterator[Object], side: str, labels: dict[str, str], port: int = 6379) -> bool:
    return any(
        port in [place["port"] for place in rule["ports"]]
        and any("podSelector" in peer and selects(peer["podSelector"], labels) for peer in rule[side])
        for rule in found
        if "ports" in rule
    )
