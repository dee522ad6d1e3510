# Copyright 2026 sqap_vla_ros maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Bags are read whatever wrote them, in order, in little memory, and as far as they are whole."""

import os
import shutil
import sqlite3
import time
from contextlib import closing
from itertools import chain

import cv2
import numpy as np
import psutil
import pytest

from sqap_vla_ros.bags.reading import BagMessage, TopicFacts, open_bag
from sqap_vla_ros.bags.storage import merge_sources
from sqap_vla_ros.errors import InputError

STORAGES = ("mcap", "sqlite3")


def read(path, topics=None):
    """All messages of a bag, and what it complains of."""
    with closing(open_bag(path)) as bag:
        messages = list(bag.messages(topics))
        return messages, bag.complaints


def plain(recorded):
    """Log time, topic and data of what was or shall be written."""
    return [(message.log_ns, message.topic, message.data) for message in recorded]


@pytest.fixture
def spoken(bags):
    """Two topics, ten messages each, some of them recorded in the same instant."""
    return [bags.text(10 * (step // 2), f"word {step}", "/instruction" if step % 4 else "/other")
            for step in range(20)]


@pytest.fixture
def heavy(bags):
    """Messages of 300 kB that cannot be compressed, three or four to a chunk of MCAP."""
    values = np.random.default_rng(0)
    return [bags.picture(step, values.integers(0, 256, 300_000, dtype=np.uint8)) for step in range(20)]


@pytest.mark.parametrize("compression", ["none", "message", "file", "storage"])
@pytest.mark.parametrize("version", [5, 8, 9])
@pytest.mark.parametrize("storage", STORAGES)
def test_every_kind_of_bag_is_read(tmp_path, bags, spoken, storage, version, compression):
    if (storage, compression) == ("sqlite3", "storage"):
        compression = "none"
    folder = bags.write_bag(tmp_path / "bag", spoken, storage, version, compression)
    with open_bag(folder) as bag:
        assert bag.path == folder
        assert bag.topics == {"/instruction": TopicFacts("std_msgs/msg/String", 15),
                              "/other": TopicFacts("std_msgs/msg/String", 5)}
        assert (bag.start_ns, bag.end_ns) == (bags.start_ns, bags.start_ns + 90)
        messages = list(bag.messages())
        assert plain(messages) == plain(spoken)
        assert [bags.store.deserialize_cdr(message.data, message.type_name).data for message in messages] == [
            f"word {step}" for step in range(20)]
        assert list(bag.messages(["/other"])) == [message for message in messages if message.topic == "/other"]
        assert list(bag.messages(["/nothing"])) == []
        assert list(bag.messages([])) == []
        assert plain(bag.messages()) == plain(spoken)
        assert bag.complaints == ()


@pytest.mark.parametrize("storage", STORAGES)
def test_a_storage_file_by_itself_is_a_bag(tmp_path, bags, spoken, storage):
    file = bags.storage_file(bags.write_bag(tmp_path / "bag", spoken, storage))
    messages, complaints = read(file.rename(tmp_path / f"with 100% #?{file.suffix}"))
    assert plain(messages) == plain(spoken)
    assert complaints == ()


@pytest.mark.parametrize("storage", STORAGES)
def test_messages_come_by_log_time(tmp_path, bags, storage):
    large = np.zeros(400_000, dtype=np.uint8)
    order = [5, 3, 3, 9, 1, 20, 8, 8, 2, 30, 4]
    recorded = [bags.picture(log_ns, large + step) for step, log_ns in enumerate(order)]
    messages, complaints = read(bags.write_bag(tmp_path / "bag", recorded, storage))
    # Sorting keeps equal ones as they were.
    assert plain(messages) == plain(sorted(recorded, key=lambda message: message.log_ns))
    assert complaints == ()


@pytest.mark.parametrize("per_chunk", [0, 3])
def test_messages_come_by_log_time_without_an_index(tmp_path, bags, per_chunk):
    order = [5, 3, 3, 9, 1, 20, 8, 8, 2, 30, 4]
    recorded = [bags.text(log_ns, f"word {step}") for step, log_ns in enumerate(order)]
    bags.write_plain_mcap(tmp_path / "bag.mcap", recorded, per_chunk, "lz4")
    with open_bag(tmp_path / "bag.mcap") as bag:
        assert plain(bag.messages()) == plain(sorted(recorded, key=lambda message: message.log_ns))
        assert bag.topics == {"/instruction": TopicFacts("std_msgs/msg/String", 11)}
        assert (bag.start_ns - bags.start_ns, bag.end_ns - bags.start_ns) == (1, 30)
        assert bag.complaints == ()


@pytest.mark.parametrize("storage", STORAGES)
def test_files_of_a_bag_are_read_as_one(tmp_path, bags, storage):
    stamps = [[0, 2, 7], [5, 7, 9], [8, 20]]
    recorded = [[bags.text(log_ns, f"{part} {log_ns}") for log_ns in each] for part, each in enumerate(stamps)]
    parts = [bags.write_bag(tmp_path / f"part_{part}", each, storage) for part, each in enumerate(recorded)]
    messages, complaints = read(bags.join_bags(tmp_path / "bag", parts))
    assert plain(messages) == plain(sorted(chain(*recorded), key=lambda message: message.log_ns))
    assert complaints == ()


def test_files_without_metadata_are_in_the_order_of_their_numbers(tmp_path, bags):
    parts = [bags.write_bag(tmp_path / f"part_{part}", [bags.text(0, str(part))]) for part in range(11)]
    folder = bags.join_bags(tmp_path / "bag", parts)
    (folder / "metadata.yaml").unlink()
    messages, (complaint,) = read(folder)
    assert [bags.store.deserialize_cdr(message.data, message.type_name).data for message in messages] == [
        str(part) for part in range(11)]
    assert complaint == ("bag has no metadata.yaml; its storage files are read without; `ros2 bag reindex bag` writes "
                         "one")


@pytest.mark.parametrize("compression", ["none", "message", "file"])
def test_compressed_bag_needs_no_metadata(tmp_path, bags, spoken, compression):
    folder = bags.write_bag(tmp_path / "bag", spoken, "sqlite3", 8, compression)
    (folder / "metadata.yaml").unlink()
    messages, complaints = read(folder)
    assert plain(messages) == plain(spoken)
    assert len(complaints) == 1


@pytest.mark.parametrize("content", [b"", b"rosbag2_bagfile_information: [", b"\xff\xfe\x00", b"- 1", b"nothing: 1",
                                     b"rosbag2_bagfile_information: {version: 5, relative_file_paths: 3}"])
def test_unreadable_metadata_is_done_without(tmp_path, bags, spoken, content):
    folder = bags.write_bag(tmp_path / "bag", spoken)
    (folder / "metadata.yaml").write_bytes(content)
    messages, (complaint,) = read(folder)
    assert plain(messages) == plain(spoken)
    assert complaint.startswith("metadata.yaml of bag cannot be read (")
    assert complaint.endswith("; its storage files are read without; `ros2 bag reindex bag` writes it anew")
    assert "\n" not in complaint


def test_file_that_is_not_there_is_named(tmp_path, bags):
    parts = [bags.write_bag(tmp_path / f"part_{part}", [bags.text(part, "go")]) for part in range(3)]
    folder = bags.join_bags(tmp_path / "bag", parts)
    (folder / "bag_1.mcap").unlink()
    messages, complaints = read(folder)
    assert [message.log_ns - bags.start_ns for message in messages] == [0, 2]
    assert complaints == ("metadata.yaml of bag names bag_1.mcap, which is not there; bag_0.mcap, bag_2.mcap is read; "
                          "copy the whole folder again",)


def test_renamed_file_is_read(tmp_path, bags, spoken):
    folder = bags.write_bag(tmp_path / "bag", spoken)
    bags.storage_file(folder).rename(folder / "other.mcap")
    messages, (complaint,) = read(folder)
    assert plain(messages) == plain(spoken)
    assert "names bag.mcap, which is not there; other.mcap is read" in complaint


def test_messages_that_metadata_counts_in_vain_are_complained_of(tmp_path, bags, spoken):
    folder = bags.write_bag(tmp_path / "bag", spoken)
    bags.edit_metadata(folder, lambda information: information.update(message_count=25))
    messages, (complaint,) = read(folder)
    assert len(messages) == 20
    assert complaint.startswith("metadata.yaml of bag names 25 messages, its files hold 20; ")


def test_what_is_no_bag_says_so(tmp_path, bags):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.txt").write_text("no bag")
    for path, expected in {
        tmp_path / "none": "there is no bag .*none; name its folder, or a .mcap, .db3, ",
        folder: "folder is no bag: it holds neither metadata.yaml nor a .mcap, .db3, ",
        folder / "notes.txt": "notes.txt is no bag; name the folder of one, or a .mcap, ",
    }.items():
        with pytest.raises(InputError, match=expected):
            open_bag(path)


def test_bag_of_ros_1_is_to_be_converted(tmp_path):
    path = tmp_path / "old.bag"
    path.write_bytes(b"#ROSBAG V2.0\n")
    for given in (path, tmp_path):
        with pytest.raises(InputError, match=r"of ROS 1; convert it with `rosbags-convert --src \S+old.bag --dst "):
            open_bag(given)


@pytest.mark.parametrize(("storage", "suffix"), [("mcap", "mcap"), ("sqlite3", "db3")])
def test_bag_of_nothing_says_so(tmp_path, bags, spoken, storage, suffix):
    empty = bags.write_bag(tmp_path / "empty", [], storage)
    with pytest.raises(InputError, match="empty holds no messages; record anew while its topics are published"):
        open_bag(empty)
    file = empty / f"empty.{suffix}"
    file.write_bytes(b"")
    with pytest.raises(InputError, match=f"nothing of the bag .*empty can be read: empty.{suffix} is empty, 0 bytes; "):
        open_bag(empty)
    file.write_bytes(b"something else" * 100)
    with pytest.raises(InputError, match=rf"nothing of the bag .*{suffix} can be read: empty.{suffix} .*; copy it"):
        open_bag(file)
    file.unlink()
    with pytest.raises(InputError, match=f"there is only metadata.yaml; empty.{suffix} that it names must be in the"):
        open_bag(empty)


def test_empty_file_among_others_is_passed_over(tmp_path, bags):
    parts = [bags.write_bag(tmp_path / f"part_{part}", [bags.text(part, "go")]) for part in range(2)]
    folder = bags.join_bags(tmp_path / "bag", parts)
    (folder / "bag_1.mcap").write_bytes(b"")
    messages, complaints = read(folder)
    assert len(messages) == 1
    assert complaints == ("bag_1.mcap is empty, 0 bytes; copy it again, or record anew",)


@pytest.mark.parametrize("change", [{"storage_identifier": "rosbag_v2"}, {"compression_format": "lz4"}])
def test_unknown_storage_is_to_be_converted(tmp_path, bags, spoken, change):
    folder = bags.write_bag(tmp_path / "bag", spoken)
    bags.edit_metadata(folder, lambda information: information.update(change))
    with pytest.raises(InputError, match=r"stored as .*; allowed are sqlite3 or mcap and zstd or none; `ros2 bag"):
        open_bag(folder)


def test_other_serializations_are_left_out(tmp_path, bags, spoken):
    bags.write_plain_mcap(tmp_path / "bag.mcap", spoken, encoding=b"json")
    with pytest.raises(InputError, match=r"messages of /other in bag.mcap are serialized as 'json' and are left"):
        open_bag(tmp_path / "bag.mcap")


@pytest.mark.parametrize("compression", ["none", "storage"])
def test_mcap_cut_in_a_chunk_is_read_until_there(tmp_path, bags, heavy, compression):
    folder = bags.write_bag(tmp_path / "bag", heavy, "mcap", 8, compression)
    file = bags.storage_file(folder)
    os.truncate(file, file.stat().st_size // 2)
    with open_bag(folder) as bag:
        messages = list(bag.messages())
        # Half of twenty, with those at the beginning of the chunk that was cut.
        assert 8 <= len(messages) <= 10
        assert plain(messages) == plain(heavy)[:len(messages)]
        assert bag.topics == {heavy[0].topic: TopicFacts(heavy[0].type_name, len(messages))}
        complaint, = bag.complaints
    assert complaint.startswith("bag.mcap is cut off or damaged at byte ")
    assert f"; the {len(messages)} messages that are whole until there are used; " in complaint
    assert complaint.endswith("`mcap recover bag.mcap -o whole.mcap`")


@pytest.mark.parametrize("missing_bytes", [1, 8, 40, 400])
def test_mcap_without_its_end_is_read(tmp_path, bags, heavy, missing_bytes):
    folder = bags.write_bag(tmp_path / "bag", heavy)
    file = bags.storage_file(folder)
    os.truncate(file, file.stat().st_size - missing_bytes)
    messages, _ = read(folder)
    assert plain(messages) == plain(heavy)


@pytest.mark.parametrize("inside", [1, 5, 9, 30, 40])
def test_mcap_without_chunks_cut_in_a_message_is_read_until_there(tmp_path, bags, spoken, inside):
    path = tmp_path / "bag.mcap"
    offsets = bags.write_plain_mcap(path, spoken)
    os.truncate(path, offsets[7] + inside)
    messages, (complaint,) = read(path)
    assert plain(messages) == plain(spoken[:7])
    assert f"bag.mcap is cut off or damaged at byte {offsets[7]} of {offsets[7] + inside}; the 7 messages" in complaint


def test_hole_in_mcap_ends_it(tmp_path, bags, spoken):
    path = tmp_path / "bag.mcap"
    offsets = bags.write_plain_mcap(path, spoken)
    content = path.read_bytes()
    path.write_bytes(content[:offsets[7]] + bytes(len(content) - offsets[7]))
    messages, (complaint,) = read(path)
    assert plain(messages) == plain(spoken[:7])
    assert f"at byte {offsets[7]} of {len(content)}" in complaint


def test_mcap_that_does_not_say_what_its_messages_are_is_of_no_use(tmp_path, bags, spoken):
    path = tmp_path / "bag.mcap"
    bags.write_plain_mcap(path, spoken)
    content = path.read_bytes()
    begin = content.index(b"/other") - 4
    path.write_bytes(content[:begin] + b"\xff" * 4 + content[begin + 4:])
    with pytest.raises(InputError, match=r"nothing of the bag .* can be read: bag.mcap is cut off or damaged at byte "):
        open_bag(path)


def test_damaged_chunk_without_an_index_is_passed_over(tmp_path, bags, spoken):
    path = tmp_path / "bag.mcap"
    offsets = bags.write_plain_mcap(path, spoken, 5)
    content = bytearray(path.read_bytes())
    content[offsets[2] + 100] ^= 1
    path.write_bytes(content)
    messages, (complaint,) = read(path)
    assert plain(messages) == plain(spoken[:10] + spoken[15:])
    assert complaint == ("1 of the chunks in bag.mcap are damaged; what of them cannot be read is left out; copy it "
                         "again")


def test_damaged_chunk_of_an_indexed_file_is_passed_over(tmp_path, bags, heavy):
    folder = bags.write_bag(tmp_path / "bag", heavy, "mcap", 8, "storage")
    file = bags.storage_file(folder)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle:middle + 2000] = bytes(2000)
    # Incompressible content is stored as it is: only the head of a compressed block tells.
    begin = content.rindex(b"\x28\xb5\x2f\xfd", 0, middle)
    content[begin:begin + 4] = b"\0\0\0\0"
    file.write_bytes(content)
    with open_bag(folder) as bag:
        messages = list(bag.messages())
        assert plain(bag.messages()) == plain(messages)
        complaints = bag.complaints
    kept = plain(messages)
    assert 16 <= len(kept) <= 17
    assert kept == [message for message in plain(heavy) if message in kept]
    assert kept[0], kept[-1] == (plain(heavy)[0], plain(heavy)[-1])
    assert complaints[0].startswith("bag.mcap is damaged (")
    assert complaints[1].startswith("1 of the chunks in bag.mcap are damaged; ")
    assert len(complaints) == 2


def test_damaged_index_of_mcap_is_done_without(tmp_path, bags, heavy):
    folder = bags.write_bag(tmp_path / "bag", heavy)
    file = bags.storage_file(folder)
    content = bytearray(file.read_bytes())
    # The length of the topic's name, where the channel is listed for the second time.
    begin = content.rindex(b"/camera/image_raw/compressed") - 4
    content[begin:begin + 4] = b"\xff" * 4
    file.write_bytes(content)
    messages, (complaint,) = read(folder)
    assert plain(messages) == plain(heavy)
    assert complaint.startswith("the index of bag.mcap cannot be used (")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95, 0.999])
def test_sqlite_cut_off_is_read_until_there(tmp_path, bags, heavy, share):
    folder = bags.write_bag(tmp_path / "bag", heavy, "sqlite3")
    file = bags.storage_file(folder)
    os.truncate(file, int(file.stat().st_size * share))
    with open_bag(folder) as bag:
        messages = list(bag.messages())
        assert plain(bag.messages()) == plain(messages)
        complaints = bag.complaints
    assert int(share * 20) - 1 <= len(messages) <= int(share * 20)
    assert plain(messages) == plain(heavy)[:len(messages)]
    assert complaints[0].startswith("bag.db3 is cut off or damaged (it has ")
    assert complaints[0].endswith("`sqlite3 bag.db3 .recover | sqlite3 whole.db3`")


@pytest.mark.parametrize("every", [1, 7])
def test_damaged_pages_of_sqlite_are_passed_over(tmp_path, bags, every):
    recorded = [bags.text(step * 31 % 1000, f"word {step}" * 10) for step in range(1000)]
    folder = bags.write_bag(tmp_path / "bag", recorded, "sqlite3")
    file = bags.storage_file(folder)
    content = bytearray(file.read_bytes())
    pages = [offset for offset in range(0, len(content), 4096) if content[offset] == 13 and b"word" in
             content[offset:offset + 4096]]
    broken = pages[10:12:every]
    for offset in broken:
        content[offset:offset + 4096] = bytes(4096)
    file.write_bytes(content)
    with open_bag(folder) as bag:
        messages = list(bag.messages())
        assert plain(bag.messages()) == plain(messages)
        complaints = bag.complaints
    lost = 1000 - len(messages)
    assert 10 * len(broken) < lost < 40 * len(broken)
    kept = set(plain(messages))
    assert plain(messages) == [each for each in sorted(plain(recorded)) if each in kept]
    assert any("bag.db3 is cut off or damaged" in complaint for complaint in complaints)


def test_page_of_sqlite_that_was_written_twice_is_passed_over(tmp_path, bags):
    recorded = [bags.text(step, f"word {step}" * 10) for step in range(1000)]
    folder = bags.write_bag(tmp_path / "bag", recorded, "sqlite3")
    file = bags.storage_file(folder)
    content = bytearray(file.read_bytes())
    pages = [offset for offset in range(0, len(content), 4096) if content[offset] == 13 and b"word" in
             content[offset:offset + 4096]]
    content[pages[10]:pages[10] + 4096] = content[pages[2]:pages[2] + 4096]
    content[pages[11]:pages[11] + 4096] = bytes(4096)
    file.write_bytes(content)
    messages, complaints = read(folder)
    kept = set(plain(messages))
    assert 920 < len(messages) == len(kept) < 980
    assert plain(messages) == [each for each in plain(recorded) if each in kept]
    assert any("bag.db3 is cut off or damaged" in complaint for complaint in complaints)


def test_damaged_content_of_one_message_in_sqlite_costs_that_message(tmp_path, bags, heavy):
    folder = bags.write_bag(tmp_path / "bag", heavy, "sqlite3")
    file = bags.storage_file(folder)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    # A page that only continues a message begins with the number of the next one.
    content[middle:middle + 4] = b"\xff" * 4
    file.write_bytes(content)
    messages, complaints = read(folder)
    assert len(messages) == 19
    kept = set(plain(messages))
    assert plain(messages) == [each for each in plain(heavy) if each in kept]
    assert complaints[1] == "1 of the messages in bag.db3 lie on damaged pages and are left out"


def test_messages_that_a_killed_recorder_left_in_the_log_are_read(tmp_path, bags, spoken):
    file = bags.storage_file(bags.write_bag(tmp_path / "bag", spoken, "sqlite3"))
    killed = tmp_path / "killed"
    killed.mkdir()
    with closing(sqlite3.connect(file)) as recorder:
        recorder.execute("PRAGMA journal_mode=WAL")
        recorder.execute("INSERT INTO messages (topic_id, timestamp, data) VALUES (1, ?, ?)",
                         (bags.start_ns + 500, bags.text(500, "late").data))
        recorder.commit()
        for path in file.parent.glob("*.db3*"):
            shutil.copy(path, killed)
    messages, _ = read(killed)
    assert plain(messages)[:20] == plain(spoken)
    assert messages[20].log_ns == bags.start_ns + 500


def test_damaged_compressed_messages_are_passed_over(tmp_path, bags, spoken):
    folder = bags.write_bag(tmp_path / "bag", spoken, "sqlite3", 8, "message")
    with closing(sqlite3.connect(bags.storage_file(folder))) as file:
        file.execute("UPDATE messages SET data = substr(data, 1, 8) WHERE id IN (3, 6)")
        file.commit()
    messages, complaints = read(folder)
    assert plain(messages) == plain(spoken[:2] + spoken[3:5] + spoken[6:])
    assert complaints == ("2 compressed messages of /instruction in bag are damaged and are left out; copy the bag "
                          "again",)


@pytest.mark.parametrize("storage", STORAGES)
def test_compressed_file_that_was_cut_is_read_until_there(tmp_path, bags, heavy, storage):
    folder = bags.write_bag(tmp_path / "bag", heavy, storage, 8, "file")
    file = bags.storage_file(folder)
    os.truncate(file, file.stat().st_size // 2)
    messages, complaints = read(folder)
    assert 7 <= len(messages) <= 10
    assert plain(messages) == plain(heavy)[:len(messages)]
    assert complaints[0].startswith(f"{file.name} can be decompressed to its byte ")
    assert complaints[1].startswith(f"{file.name} is cut off or damaged")


def test_sources_are_opened_when_they_are_due():
    opened = []

    def source(number, *stamps):
        def read_all():
            opened.append(number)
            return (BagMessage(str(number), "", stamp, b"") for stamp in stamps)
        return stamps[0], read_all

    merged = merge_sources([source(0, 0, 10), source(1, 200, 210), source(2, 5, 10, 300), source(3, 200)])
    assert [next(merged).log_ns for _ in range(2)] == [0, 5]
    assert opened == [0, 2]
    assert [(message.log_ns, message.topic) for message in merged] == [
        (10, "0"), (10, "2"), (200, "1"), (200, "3"), (210, "1"), (300, "2")]


def growth_while_reading(path):
    """Bytes by which this process is larger at its largest in the last quarter of a bag than in the first."""
    process, sizes = psutil.Process(), []
    with open_bag(path) as bag:
        for message in bag.messages():
            assert len(message.data) > 100_000
            sizes.append(process.memory_info().rss)
    quarter = len(sizes) // 4
    return max(sizes[-quarter:]) - max(sizes[:quarter])


def large_bag(bags, folder, storage, total_bytes):
    """A bag of pictures of 1 MB."""
    data = np.random.default_rng(0).integers(0, 256, 1_000_000, dtype=np.uint8)
    return bags.write_bag(folder, (bags.picture(step, data) for step in range(total_bytes // len(data))), storage)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("storage", STORAGES)
def test_memory_is_flat(tmp_path, bags, storage, cut):
    folder = large_bag(bags, tmp_path / "bag", storage, 200_000_000)
    if cut:
        file = bags.storage_file(folder)
        os.truncate(file, file.stat().st_size - 5_000_000)
    assert growth_while_reading(folder) < 16_000_000


@pytest.mark.slow
@pytest.mark.parametrize("storage", STORAGES)
def test_memory_is_flat_for_2_gb(tmp_path, bags, storage):
    assert growth_while_reading(large_bag(bags, tmp_path / "bag", storage, 2_000_000_000)) < 16_000_000


@pytest.mark.slow
@pytest.mark.parametrize("storage", STORAGES)
def test_200_pictures_a_second_are_read_and_decoded(tmp_path, bags, storage):
    from sqap_vla_ros.ros.codecs import decode_compressed

    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    scene = cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(".jpg", scene)[1].ravel()
    folder = bags.write_bag(tmp_path / "bag", (bags.picture(step, data) for step in range(200)), storage)
    # The quickest of several, since other processes only slow down.
    rates_hz = []
    for _ in range(5):
        begin_s, count = time.perf_counter(), 0
        with open_bag(folder) as bag:
            for message in bag.messages():
                rgb = decode_compressed(bags.store.deserialize_cdr(message.data, message.type_name))
                count += rgb.shape == (480, 640, 3)
        assert count == 200
        rates_hz.append(count / (time.perf_counter() - begin_s))
    print(f"{max(rates_hz):.0f} pictures of 640 x 480 px, {len(data)} bytes each, a second from {storage}")
    assert max(rates_hz) >= 200
