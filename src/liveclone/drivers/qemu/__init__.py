"""QEMU, run directly: one process a machine, found again by any later command.

argv       the command line, and the run-time devices
session    one QMP connection with deadlines and our errors
process    start a QEMU with its sockets already listening; connect to it again
driver     Driver: abilities, boot, restore, open, recover
handle     Handle: what can be done to one machine
migration  save and load device state; wait for migration's end
handover background stream     the three ways to capture
"""
