"""Publishes the lines of standard input with paho-mqtt at QoS 1 and prints how many were acknowledged.

usage: paho_publish.py PORT TOPIC (3.1.1|5) < lines
"""

import sys
import threading

import paho.mqtt.client as mqtt


def main() -> int:
    port, topic, version = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    protocol = mqtt.MQTTv5 if version == "5" else mqtt.MQTTv311
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"paho-{version}", protocol=protocol)
    client.max_inflight_messages_set(50)
    client.max_queued_messages_set(0)

    lines = [line.rstrip(b"\n") for line in sys.stdin.buffer]
    acked, refused = set(), []
    done = threading.Event()

    def on_publish(_client, _data, mid, reason, _properties):
        if reason.is_failure:
            refused.append((mid, str(reason)))
        acked.add(mid)
        if len(acked) == len(lines):
            done.set()

    client.on_publish = on_publish
    client.connect("127.0.0.1", port, keepalive=30)
    client.loop_start()
    for line in lines:
        client.publish(topic, line, qos=1)
    finished = done.wait(timeout=60) or not lines
    client.disconnect()
    client.loop_stop()
    print(len(acked) - len(refused))
    return 0 if finished and not refused else 1


if __name__ == "__main__":
    sys.exit(main())
