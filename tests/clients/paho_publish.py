"""Publishes the lines of standard input with paho-mqtt and prints how many were acknowledged.

usage: paho_publish.py PORT TOPIC (3.1.1|5) [QOS [session]] < lines

With `session` the client has a session that is kept, connects again whenever it is disconnected, sends what is not
acknowledged again as MQTT demands, and prints the count after every 20 messages.
"""

import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


def connect(client: mqtt.Client, port: int, version: str, is_kept: bool) -> None:
    arguments = {}
    if version == "5":
        arguments["clean_start"] = not is_kept
        if is_kept:
            arguments["properties"] = Properties(PacketTypes.CONNECT)
            arguments["properties"].SessionExpiryInterval = 3600
    client.connect("127.0.0.1", port, keepalive=30, **arguments)


def main() -> int:
    port, topic, version = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    qos = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    is_kept = sys.argv[5:] == ["session"]
    protocol = mqtt.MQTTv5 if version == "5" else mqtt.MQTTv311
    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2,
        client_id=f"paho-{version}-{qos}",
        clean_session=None if version == "5" else not is_kept,
        protocol=protocol,
    )
    client.max_inflight_messages_set(50)
    client.max_queued_messages_set(0)
    client.reconnect_delay_set(1, 1)

    lines = [line.rstrip(b"\n") for line in sys.stdin.buffer]
    acked, refused = set(), []
    done = threading.Event()

    def on_publish(_client, _data, mid, reason, _properties):
        if reason.is_failure:
            refused.append((mid, str(reason)))
        acked.add(mid)
        if is_kept and len(acked) % 20 == 0:
            print(len(acked), flush=True)
        if len(acked) == len(lines):
            done.set()

    client.on_publish = on_publish
    connect(client, port, version, is_kept)
    client.loop_start()
    for line in lines:
        client.publish(topic, line, qos=qos)
    finished = done.wait(timeout=100) or not lines
    client.disconnect()
    client.loop_stop()
    print(len(acked) - len(refused))
    return 0 if finished and not refused else 1


if __name__ == "__main__":
    sys.exit(main())
