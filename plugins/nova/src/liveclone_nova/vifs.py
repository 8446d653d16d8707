"""The network cards of a server, taken out for a moment and put back by Nova's own methods.

In a clone's memory there must be no card of its source's, with its MAC. So the guest loses them before its memory is
captured, and gets the same again afterwards: Neutron's ports, their addresses and bindings are not touched.
"""

from __future__ import annotations

from typing import Any

from nova import context as nova_context
from nova import objects
from nova.virt.libvirt import driver as nova_libvirt_driver
from oslo_log import log as logging

from liveclone.formats import domain_xml

LOG = logging.getLogger(__name__)


class Vifs:
    """The cards of one server. `put_back` may be called at any time, and again."""

    def __init__(
        self,
        driver: nova_libvirt_driver.LibvirtDriver,
        context: nova_context.RequestContext,
        instance: objects.Instance,
    ) -> None:
        self._driver, self._context, self._instance = driver, context, instance
        self._touched: list[Any] = []

    def take_out(self) -> None:
        """Take all of them out of the guest.

        Raises:
            InterfaceDetachFailed, DeviceDetachFailed: the guest does not let go of one; `put_back` is to be called.
        """
        for vif in self._instance.get_network_info():
            self._touched.append(vif)
            self._driver.detach_interface(self._context, self._instance, vif)

    def put_back(self) -> None:
        """Put back what was taken out, all of it, whatever fails.

        Raises:
            Exception: the first failure; what could not be put back is tried again by the next call.
        """
        failures = []
        for vif in list(self._touched):
            try:
                self.attach(vif)
            except Exception as error:  # a driver may raise anything, and the other cards count too
                LOG.exception("Card %s cannot be put back", vif["address"], instance=self._instance)
                failures.append(error)
            else:
                self._touched.remove(vif)
        if failures:
            raise failures[0]

    def put_back_all(self) -> None:
        """As `put_back`, of all that Nova has on record: nobody knows any more which were taken out."""
        self._touched = list(self._instance.get_network_info())
        self.put_back()

    def attach(self, vif: Any) -> None:
        """Give the guest a card, unless it has it: then only the host's side is seen to."""
        guest = self._driver._host.get_guest(self._instance)
        nics = domain_xml.parse_domain(guest.get_xml_desc()).nics
        if vif["address"].lower() in (nic.mac for nic in nics):
            self._driver.vif_driver.plug(self._instance, vif)  # Nova unplugs also what the guest has kept
        else:
            self._driver.attach_interface(self._context, self._instance, self._instance.image_meta, vif)
