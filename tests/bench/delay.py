# SPDX-License-Identifier: GPL-3.0-or-later
"""delay.py PORT TARGET_PORT MS: a road between two ports of 127.0.0.1 on which each byte is MS milliseconds under way.

The delay does not limit the throughput: what comes in meanwhile is on its way too. Prints "ready" when it listens.
"""

import asyncio
import contextlib
import sys


async def carry(reader, writer, seconds):
    """One direction, until its sender closes."""
    on_the_way = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def deliver():
        while True:
            due, data = await on_the_way.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                break
            writer.write(data)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            on_the_way.put_nowait((loop.time() + seconds, data))
    on_the_way.put_nowait((loop.time() + seconds, b""))
    with contextlib.suppress(ConnectionError):
        await delivery
    writer.close()


async def main(port, target_port, seconds):
    async def connected(reader, writer):
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", target_port)
        await asyncio.gather(carry(reader, target_writer, seconds), carry(target_reader, writer, seconds))

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1000))
