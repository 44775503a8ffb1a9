"""Which addresses are connected to on a stranger's behalf."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from x2l_cluster.errors import FetchFailed, InvalidInput, SourceRefused
from x2l_cluster.service.addresses import Gate, is_public

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1",
    "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:c0a8:101::1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_public_is_refused(address):
    assert not is_public(ip_address(address))
    with pytest.raises(SourceRefused):
        Gate(resolver=lambda host, port: [address]).address("some.host", 80)


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public_is_let_through(address):
    assert Gate(resolver=lambda host, port: [address]).address("some.host", 443) == str(ip_address(address))


def test_a_host_with_one_private_address_is_refused_whole():
    with pytest.raises(SourceRefused):
        Gate(resolver=lambda host, port: ["1.1.1.1", "10.0.0.1"]).address("some.host", 80)


@pytest.mark.parametrize("allow", ["lab.host", "LAB.host", "10.1.0.0/16", "10.1.2.3"])
def test_an_operator_may_allow_hosts_and_networks(allow):
    gate = Gate([allow], resolver=lambda host, port: ["10.1.2.3"])
    assert gate.address("lab.host", 80) == "10.1.2.3"
    with pytest.raises(SourceRefused):
        Gate([allow], resolver=lambda host, port: ["10.2.0.1"]).address("another.host", 80)


def test_what_is_no_network_is_refused():
    with pytest.raises(InvalidInput):
        Gate(["10.0.0.1/99"])


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "localhost"])
def test_other_ways_to_write_an_address_lead_to_the_same_refusal(host):
    with pytest.raises((SourceRefused, FetchFailed)):
        Gate().address(host, 80)


def test_a_host_that_cannot_be_found_is_a_failed_fetch():
    def nowhere(host: str, port: int) -> list[str]:
        raise socket.gaierror("no such host")

    for resolver in (nowhere, lambda host, port: []):
        with pytest.raises(FetchFailed):
            Gate(resolver=resolver).address("no.host", 80)
