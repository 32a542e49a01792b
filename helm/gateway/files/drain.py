"""Run in Envoy's container before it is told to stop: let nothing new in, wait for the answers.

Arguments: Envoy's admin socket, seconds until nobody sends anything new, seconds for what is under
way then.
"""

import http.client
import socket
import sys
import time

path, wait, finish = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])


def admin(method, target):
    connection = http.client.HTTPConnection("localhost", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(5)
    connection.sock.connect(path)
    connection.request(method, target)
    text = connection.getresponse().read().decode()
    connection.close()
    return text


# Not ready: Services take the pod out. Connections are closed after their next answer.
admin("POST", "/healthcheck/fail")
time.sleep(wait)
until = time.monotonic() + finish
while time.monotonic() < until:
    found = admin("GET", "/stats?filter=^http.gateway.downstream_rq_active$")
    if found.strip().endswith(" 0"):
        break
    time.sleep(0.5)
