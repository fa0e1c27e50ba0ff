"""What lies at an address: requests that are tried again, and a cache on this machine."""
