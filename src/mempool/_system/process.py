"""This process, from ``/proc/self``: resident, own, peak and address-space bytes."""
