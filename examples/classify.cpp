// Prints the class of an image and its probability, by onnxruntime, for a model that was exported with
// --fold-normalization.
//
// The image is a binary PGM (one channel) or PPM (three channels) of the model's size with 8 bits, as ImageMagick writes
// it, which rotates the image by its EXIF, scales it to cover that size, bilinearly, and crops the centre:
//   convert image.png -auto-orient -filter triangle -resize 32x32^ -gravity center -extent 32x32 -depth 8 image.ppm
// This program does none of this itself; if "resize" and "interpolation" in the metadata say something else, it says so.
//
// With onnxruntime from Debian 13 (apt-get install libonnxruntime-dev):
//   g++ -std=c++17 classify.cpp $(pkg-config --cflags --libs libonnxruntime) -o classify
//   ./classify student.onnx image.ppm
//
// With an archive of https://github.com/microsoft/onnxruntime/releases, unpacked as DIR:
//   g++ -std=c++17 classify.cpp -I DIR/include -L DIR/lib -lonnxruntime -o classify
//   LD_LIBRARY_PATH=DIR/lib ./classify student.onnx image.ppm
//
// The first line has the index of the class; the names are in the metadata, which the second line has as JSON.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
    int64_t channels, height, width;
    std::vector<float> pixels;  // (C, H, W) in [0, 1]
};

Image read_image(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    int64_t width = 0, height = 0, largest = 0;
    file >> magic >> width >> height >> largest;
    file.get();  // the single space after the header
    const int64_t channels = magic == "P5" ? 1 : magic == "P6" ? 3 : 0;
    if (!file || channels == 0 || largest != 255 || width < 1 || height < 1 || width > 4096 || height > 4096)
        throw std::runtime_error(path + " is not an 8-bit binary PGM or PPM file");
    std::vector<unsigned char> bytes(channels * height * width);
    if (!file.read(reinterpret_cast<char*>(bytes.data()), bytes.size())) throw std::runtime_error(path + " is cut off");
    Image image{channels, height, width, std::vector<float>(bytes.size())};
    for (int64_t pixel = 0; pixel < height * width; ++pixel)
        for (int64_t channel = 0; channel < channels; ++channel)
            image.pixels[channel * height * width + pixel] = bytes[pixel * channels + channel] / 255.0f;
    return image;
}

int main(int count, char** arguments) try {
    if (count != 3) throw std::runtime_error("usage: classify student.onnx image.ppm");
    Image image = read_image(arguments[2]);

    Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "classify");
    Ort::Session session(environment, arguments[1], Ort::SessionOptions{});
    Ort::AllocatorWithDefaultOptions allocator;
    const auto about = session.GetModelMetadata().LookupCustomMetadataMapAllocated("gapssg", allocator);
    if (!about || !std::strstr(about.get(), "\"normalization_folded\":true"))
        throw std::runtime_error("export the model with --fold-normalization");
    if (!std::strstr(about.get(), "\"resize\":\"crop\"") || !std::strstr(about.get(), "\"interpolation\":\"bilinear\""))
        std::cerr << "this program does not resize: do it as \"resize\" and \"interpolation\" in the metadata say\n";
    const std::vector<int64_t> shape{1, image.channels, image.height, image.width};
    Ort::Value input = Ort::Value::CreateTensor<float>(
        Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault), image.pixels.data(), image.pixels.size(),
        shape.data(), shape.size());
    const char* inputs[] = {"images"};
    const char* outputs[] = {"logits"};
    auto results = session.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, outputs, 1);

    const float* logits = results[0].GetTensorData<float>();
    const int64_t classes = results[0].GetTensorTypeAndShapeInfo().GetShape()[1];
    const float* best = std::max_element(logits, logits + classes);
    double total = 0;  // of the odds against the best class, whose probability is its inverse
    for (int64_t index = 0; index < classes; ++index) total += std::exp(logits[index] - *best);
    std::cout << best - logits << ' ' << std::fixed << std::setprecision(4) << 1 / total << '\n';
    std::cout << about.get() << '\n';
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
